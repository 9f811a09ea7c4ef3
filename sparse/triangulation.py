"""Points from the matched features of images whose cameras are known."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_utils import RADIUS_PER_PIXEL, pixels_to_rays, points_to_pixels
from sparse.features import (
    View,
    choose_pairs,
    feature_scale,
    features_per_image,
    find_features,
    match_views,
)
from sparse.tracks import Matches, tracks_of, verified
from structures import Cameras, SparsePoints

# Of more images, so many at equal steps; and the number of pairs of images that are matched.
MAX_IMAGES, MAX_PAIRS = 200, 1500

# A point is seen by at least this many images, under an angle of at least so many degrees, and its
# mean reprojection error is at most this many pixels of the images with features.
MIN_VIEWS, MIN_ANGLE, MAX_ERROR = 3, 1.5, 1.5

# Observations with larger errors are removed from round to round.
ERROR_LIMITS = (16.0, 6.0, 3.0, 3.0)


class Tracks(NamedTuple):
    """K places in images, those of equal `point_idx` of one point.

    image_idx: `[K]`; pixels: `[K, 2]`, continuous coordinates; point_idx: `[K]`.
    """

    image_idx: Tensor
    pixels: Tensor
    point_idx: Tensor


class Observations(NamedTuple):
    """K places in images that show a point.

    image_idx: `[K]`; pixels: `[K, 2]`, continuous coordinates; point_idx: `[K]`.
    scale: `[K]`, of the image in which the place was found, beside this one. origins, directions
    (unit): `[K, 3]`, of the rays; pixel_angle: `[K]`, radians per pixel of the former.
    """

    image_idx: Tensor
    pixels: Tensor
    point_idx: Tensor
    scale: Tensor
    origins: Tensor
    directions: Tensor
    pixel_angle: Tensor

    def of_points(self, chosen: Tensor) -> "Observations":
        """The chosen ones of points that enough of these see; points are numbered anew."""
        chosen = chosen.nonzero()[:, 0]
        point_idx, counts = self.point_idx[chosen].unique(return_inverse=True,
                                                          return_counts=True)[1:]
        chosen = chosen[counts[point_idx] >= MIN_VIEWS]
        point_idx = self.point_idx[chosen].unique(return_inverse=True)[1]
        return Observations(*(values[chosen] for values in self))._replace(point_idx=point_idx)

    @property
    def num_points(self) -> int:
        """The number of points."""
        return int(self.point_idx.max()) + 1 if len(self.point_idx) else 0

    def sum_per_point(self, values: Tensor) -> Tensor:
        """Sums `[M, C]` of `values [K, C]` over each point's observations, in a fixed order."""
        # Without values, the library counts in integers.
        return torch.stack([self.point_idx.bincount(column, self.num_points).double()
                            for column in values.double().unbind(dim=-1)], dim=-1)

    def mean_per_point(self, values: Tensor) -> Tensor:
        """Means `[M]` of `values [K]` over each point's observations."""
        ones = torch.ones_like(values)
        total, count = self.sum_per_point(torch.stack([values, ones], dim=-1)).unbind(dim=-1)
        return total / count


def triangulate(cameras: Cameras,
                read_image: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
                threads: int = 1) -> SparsePoints:
    """The points that at least three of the images show.

    cameras: of the images; read_image: from an index to a grey image, uint8 `[h, w]`, and its mask,
    0 where there is nothing to match, or None. Results do not depend on `threads`.
    """
    count = len(cameras)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(count, MAX_IMAGES))})
    pairs = choose_pairs(cameras.camtoworlds[chosen], MAX_PAIRS)
    max_features = features_per_image(len(pairs))

    def find(i):
        scale = feature_scale(*cameras.sizes[i].tolist(), len(chosen))
        features = find_features(*read_image(i), scale, max_features)
        index = torch.zeros(len(features.pixels), dtype=torch.int64)
        return features, observe(cameras, index + i, features.pixels, index,
                                 torch.full((len(index),), scale))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(find, chosen))
        views = [View(cameras.camtoworlds[i, :, 3], seen.directions, features.descriptors,
                      float(seen.pixel_angle.sum()) / max(1, len(seen.pixel_angle)))
                 for i, (features, seen) in zip(chosen, found, strict=True)]
        found_matches = list(pool.map(lambda pair: match_views(*(views[i] for i in pair)), pairs))
    columns = zip(*(seen for _, seen in found), strict=True)
    seen = Observations(*(torch.cat(values) for values in columns))
    first = np.cumsum([0, *(len(view.directions) for view in views)]).tolist()
    matches = join_matches(pairs, found_matches, first)
    matches = verified(matches, seen.origins, seen.directions, seen.pixel_angle)
    point_idx = tracks_of(matches, first)
    seen = seen._replace(point_idx=point_idx)
    return points_of(cameras, seen.of_points(point_idx >= 0))


def join_matches(pairs, found, first) -> Matches:
    """The `Matches` of pairs of images (i, j), each with the result of `match_views`."""
    index = [pair_index + torch.tensor([first[i], first[j]])
             for (i, j), (pair_index, _) in zip(pairs, found, strict=True)]
    return Matches(torch.cat([torch.zeros(0, 2, dtype=torch.int64), *index]),
                   torch.cat([torch.zeros(0), *(distance for _, distance in found)]))


def triangulate_tracks(cameras: Cameras, tracks: Tracks) -> SparsePoints:
    """The points of known tracks, from their places in the images of these cameras alone."""
    scales = torch.tensor([feature_scale(*size, 1) for size in cameras.sizes.tolist()])
    seen = observe(cameras, *tracks, scales[tracks.image_idx])
    return points_of(cameras, seen.of_points(torch.ones(len(seen.pixels), dtype=torch.bool)))


def observe(cameras: Cameras, image_idx: Tensor, pixels: Tensor, point_idx: Tensor,
            scale: Tensor) -> Observations:
    """The `Observations` of places in the images of some cameras."""
    rays = pixels_to_rays(replace(cameras, ndc=None), image_idx, *(pixels - 0.5).unbind(-1))
    angle = rays.radii / RADIUS_PER_PIXEL / rays.directions.norm(dim=-1, keepdim=True)
    return Observations(image_idx, pixels, point_idx, scale, rays.origins, rays.viewdirs,
                        angle[:, 0] / scale)


def points_of(cameras: Cameras, seen: Observations) -> SparsePoints:
    """Triangulate each track; drop observations that do not fit, and points that few ones see."""
    seen = seen.of_points(seen.directions.isfinite().all(dim=-1))
    for limit in ERROR_LIMITS:
        errors = reprojection_errors(cameras, seen, intersect(seen))
        seen = seen.of_points(errors <= limit)
    points = intersect(seen)
    errors = reprojection_errors(cameras, seen, points)
    good = (seen.mean_per_point(errors) <= MAX_ERROR) & (widest_angles(seen, points) >= MIN_ANGLE)
    used = good[seen.point_idx]
    points, errors, seen = points[good], errors[used], seen.of_points(used)
    return SparsePoints(
        positions=points.float(), errors=seen.mean_per_point(errors / seen.scale).float(),
        image_idx=seen.image_idx, pixels=seen.pixels, point_idx=seen.point_idx)


def intersect(seen: Observations, iterations: int = 5) -> Tensor:
    """The points `[M, 3]` nearest to their rays, in angles; large errors count less (Huber)."""
    origins, directions = seen.origins.double(), seen.directions.double()
    identity = torch.eye(3, dtype=torch.float64)
    across = identity - directions[:, :, None] * directions[:, None, :]
    weights = torch.ones(len(origins), dtype=torch.float64)
    points = torch.zeros(seen.num_points, 3, dtype=torch.float64)
    for _ in range(iterations):
        weighted = weights[:, None, None] * across
        left = seen.sum_per_point(weighted.reshape(-1, 9)).reshape(-1, 3, 3)
        right = seen.sum_per_point((weighted @ origins[:, :, None])[..., 0])
        damping = 1e-12 * left.diagonal(dim1=1, dim2=2).sum(dim=-1)[:, None, None].clamp(min=1e-30)
        points = torch.linalg.solve_ex(left + damping * identity, right).result
        offset = points[seen.point_idx] - origins
        distance = offset.norm(dim=-1).clamp(min=1e-12)
        off_ray = (across @ offset[:, :, None])[..., 0].norm(dim=-1)
        pixels_off = off_ray / distance / seen.pixel_angle.double().clamp(min=1e-12)
        weights = 1 / distance**2 / pixels_off.clamp(min=1.0)
    return points


def reprojection_errors(cameras: Cameras, seen: Observations, points: Tensor) -> Tensor:
    """Errors `[K]` in pixels of the images with features; infinite behind the camera."""
    points = points[seen.point_idx]
    pixels, _ = points_to_pixels(cameras, seen.image_idx, points.float())
    in_front = ((points - seen.origins) * seen.directions).sum(dim=-1) > 0
    errors = (pixels - seen.pixels).norm(dim=-1) * seen.scale
    return torch.where(in_front & errors.isfinite(), errors, torch.inf).double()


def widest_angles(seen: Observations, points: Tensor) -> Tensor:
    """About the largest angle `[M]` between rays to a point, in degrees.

    From the ray that is farthest from the mean one, to the farthest from it.
    """
    normalize = torch.nn.functional.normalize
    towards = normalize(points[seen.point_idx] - seen.origins, dim=-1)
    mean = normalize(seen.sum_per_point(towards), dim=-1)
    cosine = (towards * mean[seen.point_idx]).sum(dim=-1)
    farthest = np.zeros(len(points), dtype=np.int64)
    order = cosine.argsort(descending=True, stable=True).numpy()
    farthest[seen.point_idx.numpy()[order]] = order  # The last one remains.
    cosine = (towards * towards[farthest][seen.point_idx]).sum(dim=-1).clamp(-1, 1)
    least = torch.ones(len(points), dtype=torch.float64)
    least = least.scatter_reduce(0, seen.point_idx, cosine, "amin")
    return torch.rad2deg(torch.acos(least))
