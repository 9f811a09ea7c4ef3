"""Features of images, and their matches between images whose cameras are known."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from fields import hash_grid

# Features are found in images no longer than this, and in fewer pixels if there are many images:
# SIFT takes about a microsecond per pixel.
MAX_SIDE, MAX_PIXELS = 800, 30_000_000
MIN_SIDE = 200

# The strongest features of each image, fewer if there are many pairs of images.
MAX_FEATURES, MAX_SIMILARITIES = 2000, 3_000_000_000
MIN_FEATURES = 300

# Weak features count too: wrong ones do not survive the known geometry.
CONTRAST_THRESHOLD = 0.01

# A match is at least this much closer, in distance of descriptors, than the next best one along
# its epipolar line (Lowe's ratio test).
MAX_RATIO = 0.85

# The greatest distance of a match from its epipolar plane, in pixels of the image with features.
MAX_EPIPOLAR_ERROR = 2.0


class Features(NamedTuple):
    """The K features of one image.

    pixels: `[K, 2]`, continuous coordinates (the centre of the first pixel is (0.5, 0.5)).
    descriptors: `[K, 128]`, unit vectors.
    """

    pixels: Tensor
    descriptors: Tensor


def feature_scale(width: int, height: int, count: int) -> float:
    """The factor by which `count` images of a size are reduced before features are found."""
    side = max(width, height)
    affordable = (MAX_PIXELS / count / (width * height)) ** 0.5
    return min(1.0, max(min(MAX_SIDE / side, affordable), MIN_SIDE / side))


def features_per_image(num_pairs: int) -> int:
    """The largest number of features per image that are matched in `num_pairs` pairs of images."""
    affordable = int((MAX_SIMILARITIES / max(1, num_pairs)) ** 0.5)
    return min(MAX_FEATURES, max(MIN_FEATURES, affordable))


def find_features(image: np.ndarray, mask: np.ndarray | None, scale: float,
                  max_features: int) -> Features:
    """SIFT features with root descriptors (Arandjelović and Zisserman, CVPR 2012).

    image: uint8 `[h, w]`; mask: uint8 `[h, w]`, 0 where there are to be none; scale: reduces both.
    """
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in image.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        if mask is not None:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    # Without the last option all features lie a quarter of a pixel off.
    sift = cv2.SIFT_create(nfeatures=max_features, contrastThreshold=CONTRAST_THRESHOLD,
                           enable_precise_upscale=True)
    keypoints, descriptors = sift.detectAndCompute(image, mask)
    if not keypoints:
        return Features(torch.zeros(0, 2), torch.zeros(0, 128))
    # The library counts from the centre of the first pixel.
    pixels = torch.tensor([keypoint.pt for keypoint in keypoints]) + 0.5
    roots = torch.from_numpy(descriptors).float().sqrt()
    return Features(pixels[:max_features] / scale,
                    torch.nn.functional.normalize(roots[:max_features], dim=-1))


def choose_pairs(camtoworlds: Tensor, max_pairs: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of cameras `[N, 3, 4]` to match: all, or those most alike.

    Above `max_pairs` pairs each camera is matched with as many neighbours, by the distance of their
    positions, in units of the median one, plus the angle in radians between their directions.
    """
    count = len(camtoworlds)
    positions, backward = camtoworlds[:, :, 3], camtoworlds[:, :, 2]
    distances = torch.cdist(positions[None], positions[None],
                            compute_mode="donot_use_mm_for_euclid_dist")[0]
    angles = torch.acos((backward @ backward.T).clamp(-1, 1))
    unlike = distances / distances.median().clamp(min=1e-12) + angles
    unlike.fill_diagonal_(torch.inf)
    if count * (count - 1) // 2 <= max_pairs:
        neighbours = count - 1
    else:
        neighbours = max(2, max_pairs // count)
    nearest = unlike.argsort(dim=-1, stable=True)[:, :neighbours]
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row}
    return sorted(pairs)


class View(NamedTuple):
    """Features of an image as rays of the world.

    origin: `[3]`; directions: `[K, 3]`, unit vectors; descriptors: `[K, 128]`; pixel_angle: the
    angle of a pixel of the image in which the features were found, in radians.
    """

    origin: Tensor
    directions: Tensor
    descriptors: Tensor
    pixel_angle: float


def match_views(a: View, b: View) -> tuple[Tensor, Tensor]:
    """Matches of two views: feature indices `[K, 2]` and distances of descriptors `[K]`.

    Mutually nearest descriptors among those near their epipolar planes; each better by `MAX_RATIO`
    than the second nearest.
    """
    if not len(a.directions) or not len(b.directions):
        return torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    baseline = b.origin - a.origin
    limit = MAX_EPIPOLAR_ERROR * max(a.pixel_angle, b.pixel_angle)
    normals = torch.nn.functional.normalize(torch.linalg.cross(
        baseline.expand_as(a.directions), a.directions), dim=-1)
    find = best_matches
    if hash_grid.has_numba():
        from sparse import matching_numba

        find = matching_numba.best_matches
    best, second, index, index_of_b = find(
        normals, b.directions, a.descriptors, b.descriptors, limit)
    distance, next_distance = ((2 - 2 * x.clamp(max=1)).sqrt() for x in (best, second))
    i = torch.arange(len(index))
    kept = (best > 0) & (index_of_b[index] == i) & (distance < MAX_RATIO * next_distance)
    return torch.stack([i, index], dim=-1)[kept], distance[kept]


def best_matches(normals: Tensor, directions: Tensor, a: Tensor, b: Tensor,
                 limit: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each feature of one image and of another, its best match in the other one.

    normals: `[K, 3]`, of the epipolar planes of the features with descriptors `a [K, C]`;
    directions: `[L, 3]`, of the rays of the features with descriptors `b [L, C]`. Only rays whose
    sine of the angle to a plane is at most `limit` match it.
    Returns the largest and second largest product of descriptors, `[K]` each, -1 if there is none,
    and the indices `[K]` and `[L]` of the best match.
    """
    off_plane = (normals @ directions.T).abs() > limit
    similarity = (a @ b.T).masked_fill(off_plane, -1.0)
    two = torch.nn.functional.pad(similarity, (0, 1), value=-1.0).topk(2, dim=1).values
    return two[:, 0], two[:, 1], similarity.argmax(dim=1), similarity.argmax(dim=0)
