"""Tracks: matches of pairs of images, verified by others and joined."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Two matches of a feature agree if their inverse distances differ by no more than this many pixels
# would change them.
AGREEING_PIXELS = 2.0


class Matches(NamedTuple):
    """K matches between the F features of all images.

    index: `[K, 2]`, of both features; distance: `[K]`, of their descriptors.
    """

    index: Tensor
    distance: Tensor


def inverse_distances(matches: Tensor, origins: Tensor, directions: Tensor,
                      pixel_angle: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse distance of the point of each match from its first feature's camera, and one pixel's
    change of it, both `[K]`; negative if the rays meet behind the camera.

    matches: `[K, 2]`; origins, directions (unit): `[F, 3]`, of the features' rays; pixel_angle:
    `[F]`, in radians.
    """
    a, b = matches.unbind(dim=-1)
    # o_a + z d_a = o_b + z' d_b, and the cross product of both sides with d_b.
    across = torch.linalg.cross(directions[a], directions[b])
    baseline = torch.linalg.cross(origins[b] - origins[a], directions[b])
    length = baseline.norm(dim=-1).clamp(min=1e-12)
    inverse = (across * baseline).sum(dim=-1) / length**2
    return inverse, torch.maximum(pixel_angle[a], pixel_angle[b]) / length


def verified(matches: Matches, origins: Tensor, directions: Tensor,
             pixel_angle: Tensor) -> Matches:
    """The matches in front of their cameras that another match of one of their features supports.

    Wrong matches lie on epipolar lines, too, but rarely agree with others in their distance.
    """
    both = torch.cat([matches.index, matches.index.flip(dims=(1,))])
    inverse, pixel = inverse_distances(both, origins, directions, pixel_angle)
    tolerance = AGREEING_PIXELS * pixel
    # By feature, then by inverse distance: neighbours are compared.
    order = inverse.argsort(stable=True)
    order = order[both[order, 0].argsort(stable=True)]
    feature, inverse, limit = both[order, 0], inverse[order], tolerance[order]
    agree = (feature[1:] == feature[:-1]) & (
        inverse[1:] - inverse[:-1] <= limit[1:] + limit[:-1])
    supported = torch.zeros(len(both), dtype=torch.bool)
    supported[order[1:]] |= agree
    supported[order[:-1]] |= agree
    in_front = torch.zeros_like(supported)
    in_front[order] = inverse > -limit
    first, second = (supported & in_front).chunk(2)
    kept = (first | second) & in_front[: len(first)] & in_front[len(first) :]
    return Matches(matches.index[kept], matches.distance[kept])


def tracks_of(matches: Matches, first: Sequence[int]) -> Tensor:
    """The track of each feature, `[F]`, -1 for a feature without a match.

    first: the index of each image's first feature, and behind the last image their number F. The
    closest matches are joined first, and none that would give a track two features of one image.
    """
    pairs = matches.index[matches.distance.argsort(stable=True)].tolist()
    parent = list(range(first[-1]))
    # The images of each track, as bits.
    seen_in = [1 << image for image in range(len(first) - 1)
               for _ in range(first[image + 1] - first[image])]

    def root_of(feature):
        while parent[feature] != feature:
            parent[feature] = parent[parent[feature]]
            feature = parent[feature]
        return feature

    for a, b in pairs:
        a, b = root_of(a), root_of(b)
        if a != b and not seen_in[a] & seen_in[b]:
            parent[max(a, b)] = min(a, b)
            seen_in[min(a, b)] |= seen_in[max(a, b)]
    roots = np.array([root_of(feature) for feature in range(first[-1])], dtype=np.int64)
    _, track, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    return torch.from_numpy(np.where(sizes[track] > 1, track, -1))
