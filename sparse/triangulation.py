"""Points from the matched features of images whose cameras are known."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_utils import pixels_to_rays, points_to_pixels
from sparse.features import (
    View,
    choose_pairs,
    feature_scale,
    features_per_image,
    find_features,
    match_views,
    tracks_of,
)
from structures import Cameras, SparsePoints

# Of more images, so many at equal steps; and the number of pairs of images that are matched.
MAX_IMAGES, MAX_PAIRS = 200, 1500

# A point is seen by at least this many images, under an angle of at least so many degrees, and its
# mean reprojection error is at most this many pixels of the images with features.
MIN_VIEWS, MIN_ANGLE, MAX_ERROR = 3, 1.5, 1.5

# Observations with larger errors are removed from round to round.
ERROR_LIMITS = (16.0, 6.0, 3.0, 3.0)


class Observations(NamedTuple):
    """K features that may show a point.

    image_idx: `[K]`; pixels: `[K, 2]`; point_idx: `[K]`; origins, directions (unit): `[K, 3]`;
    pixel_angle: `[K]`, radians per pixel of the image with features; scale: `[K]`, of that image.
    """

    image_idx: Tensor
    pixels: Tensor
    point_idx: Tensor
    origins: Tensor
    directions: Tensor
    pixel_angle: Tensor
    scale: Tensor

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
        return torch.stack([self.point_idx.bincount(column, self.num_points)
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
    scales = [feature_scale(*cameras.sizes[i].tolist(), len(chosen)) for i in chosen]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(
            lambda i, scale: find_features(*read_image(i), scale, max_features), chosen, scales))
        views, observations = zip(*(
            view_of(cameras, i, features, scale)
            for i, scale, features in zip(chosen, scales, found, strict=True)), strict=True)
        matches = list(pool.map(
            lambda pair: (*pair, *match_views(*(views[i] for i in pair))), pairs))
    first = np.cumsum([0, *(len(view.directions) for view in views)]).tolist()
    observed = Observations(*(torch.cat(values) for values in zip(*observations, strict=True)))
    observed = observed._replace(point_idx=tracks_of(matches, first))
    return points_of(cameras, observed.of_points(observed.point_idx >= 0))


def view_of(cameras: Cameras, index: int, features, scale: float) -> tuple[View, Observations]:
    """The `View` of an image's features, and their `Observations` without points."""
    pixels = features.pixels
    rays = pixel_rays(cameras, torch.full((len(pixels),), index), pixels)
    pixel_angle = rays.radii[:, 0] * (12**0.5 / 2) / rays.directions.norm(dim=-1) / scale
    typical = float(pixel_angle.median()) if len(pixels) else 0.0
    view = View(cameras.camtoworlds[index, :, 3], rays.viewdirs, features.descriptors, typical)
    return view, Observations(
        torch.full((len(pixels),), index), pixels, torch.zeros(len(pixels), dtype=torch.int64),
        rays.origins, rays.viewdirs, pixel_angle, torch.full((len(pixels),), scale))


def pixel_rays(cameras: Cameras, cam_idx: Tensor, pixels: Tensor):
    """The world's rays through continuous pixel coordinates `[K, 2]`."""
    return pixels_to_rays(replace(cameras, ndc=None), cam_idx, *(pixels - 0.5).unbind(-1))


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
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    weights = torch.ones(len(origins), dtype=torch.float64)
    points = torch.zeros(seen.num_points, 3, dtype=torch.float64)
    for _ in range(iterations):
        weighted = weights[:, None, None] * across
        left = seen.sum_per_point(weighted.reshape(-1, 9)).reshape(-1, 3, 3)
        right = seen.sum_per_point((weighted @ origins[:, :, None])[..., 0])
        damping = 1e-12 * left.diagonal(dim1=1, dim2=2).sum(dim=-1)[:, None, None].clamp(min=1e-30)
        points = torch.linalg.solve(left + damping * torch.eye(3, dtype=torch.float64), right)
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
