"""Ray range (near, far) and bounding box of captures, from sparse points or cameras alone."""

import math

import numpy as np
import torch
from torch import Tensor

import pose_utils
from ray_utils import points_to_pixels
from structures import Cameras, SparsePoints

# This percentage of the visible points is treated as outliers at each end of the depth range; the
# remaining range is then widened by a tenth.
OUTLIER_PERCENT = 0.1

# This percentage of the observations of matched points: where texture repeats, matches are wrong.
WRONG_MATCH_PERCENT = 1.0

# This many points suffice to estimate the range.
MAX_POINTS = 20_000

# Without points: near and far as multiples of the cameras' distance to their focus point. In four
# captures, features lay between 0.43 and 6.6 times that distance.
NEAR_RATIO, FAR_RATIO = 0.2, 10.0


def cube(half_width: float) -> Tensor:
    """The corners `[2, 3]` of a cube about the origin."""
    return torch.tensor([[-half_width] * 3, [half_width] * 3])


def visible_range(cameras: Cameras, points: np.ndarray) -> tuple[float, float] | None:
    """The range of t in which cameras see points `[M, 3]`, slightly widened; None if they see none.

    A tenth of a percent of the visible points is ignored at each end.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    points = points[:: max(1, math.ceil(len(points) / MAX_POINTS))]
    distances = [_visible_distances(cameras, i, points) for i in range(len(cameras))]
    distances = np.concatenate([np.zeros(0), *distances])
    if not distances.size:
        return None
    near, far = np.percentile(distances, [OUTLIER_PERCENT, 100 - OUTLIER_PERCENT])
    return 0.9 * near, 1.1 * far


def observed_range(cameras: Cameras, points: SparsePoints) -> tuple[float, float]:
    """The range of t at which images show their matched points, slightly widened.

    cameras: those that the points' `image_idx` counts.
    """
    index, positions = points.image_idx, points.positions[points.point_idx]
    t = _t_of_points(cameras, index, positions, points_to_pixels(cameras, index, positions)[1])
    near, far = np.percentile(t.numpy(), [WRONG_MATCH_PERCENT, 100 - WRONG_MATCH_PERCENT])
    return 0.9 * near, 1.1 * far


def _visible_distances(cameras, index, points):
    """The t of those `points` that project into one camera's image."""
    index = torch.full((len(points),), index)
    pixels, depth = points_to_pixels(cameras, index, points)
    inside = ((pixels >= 0) & (pixels <= cameras.sizes[index])).all(dim=-1)
    t = _t_of_points(cameras, index, points, depth)
    return t[inside & (t > 0)].numpy()


def _t_of_points(cameras, index, points, depth):
    """The t of points in the cameras at `index`: their depth, but the distance from fisheyes."""
    if cameras.fisheye is None:
        return depth
    distance = (points - cameras.camtoworlds[index, :, 3]).norm(dim=-1)
    return distance.where(cameras.fisheye[index], depth)


def range_from_cameras(camtoworlds: np.ndarray) -> tuple[float, float]:
    """The range of t if there are no points: multiples of the cameras' distance to their focus."""
    distance = _distance_to_focus(camtoworlds)
    return NEAR_RATIO * distance, FAR_RATIO * distance


def _distance_to_focus(camtoworlds):
    """The median distance of the cameras to the point that they look at."""
    offset = camtoworlds[:, :, 3] - pose_utils.focus_point(camtoworlds)
    return float(np.median(np.linalg.norm(offset, axis=-1)))


def bounding_box(camtoworlds: np.ndarray, points: np.ndarray) -> Tensor:
    """The corners `[2, 3]` of a box around the cameras and nearly all points `[M, 3]`.

    Without points, the box holds the cameras and a cube about their focus point whose half width
    is their distance to it.
    """
    if not len(points):
        focus, distance = pose_utils.focus_point(camtoworlds), _distance_to_focus(camtoworlds)
        points = np.stack([focus - distance, focus + distance])
    low, high = np.percentile(points, [1, 99], axis=0)
    margin = 0.1 * (high - low)
    positions = camtoworlds[:, :, 3]
    low = np.minimum(low - margin, positions.min(axis=0))
    high = np.maximum(high + margin, positions.max(axis=0))
    return torch.as_tensor(np.stack([low, high]), dtype=torch.float32)
