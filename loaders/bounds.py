"""Range and bounding box of captures."""

import math

import numpy as np
import torch

import pose_utils
from ray_utils import points_to_pixels

# What lies nearer or farther than all but this share of what the views see of the sparse points
# is taken for an error; the range is then widened by a tenth.
STRAY_PERCENT = 0.1

# As many points suffice to tell the range and the box.
MOST_POINTS = 20_000

# Without points: near and far as multiples of the cameras' distance to what they look at.
# In four captures, features lie between 0.43 and 6.6 of it.
NEAR_SHARE, FAR_SHARE = 0.2, 10.0


def cube(half_width):
    """The corners `[2, 3]` of a cube about the origin."""
    return torch.tensor([[-half_width] * 3, [half_width] * 3])


def seen_range(cameras, points):
    """The range of t in which cameras see points `[M, 3]`, widened a little; None if none is seen.

    A tenth of a percent of what is seen is left out at each end.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    points = points[:: max(1, math.ceil(len(points) / MOST_POINTS))]
    seen = [_seen_distances(cameras, i, points) for i in range(len(cameras))]
    seen = np.concatenate([np.zeros(0), *seen])
    if not seen.size:
        return None
    near, far = np.percentile(seen, [STRAY_PERCENT, 100 - STRAY_PERCENT])
    return 0.9 * near, 1.1 * far


def _seen_distances(cameras, index, points):
    """The t of those `points` that lie in one camera's picture."""
    pixels, depth = points_to_pixels(cameras, torch.full((len(points),), index), points)
    inside = ((pixels >= 0) & (pixels <= cameras.sizes[index])).all(dim=-1)
    fisheye = cameras.fisheye is not None and bool(cameras.fisheye[index])
    t = (points - cameras.camtoworlds[index, :, 3]).norm(dim=-1) if fisheye else depth
    return t[inside & (t > 0)].numpy()


def cameras_range(camtoworlds):
    """A range of t where there are no points: shares of the distance to what cameras look at."""
    distance = _distance_to_focus(camtoworlds)
    return NEAR_SHARE * distance, FAR_SHARE * distance


def _distance_to_focus(camtoworlds):
    offset = camtoworlds[:, :, 3] - pose_utils.focus_point(camtoworlds)
    return float(np.median(np.linalg.norm(offset, axis=-1)))


def content_box(camtoworlds, points):
    """The corners `[2, 3]` of a box around the cameras and nearly all points `[M, 3]`.

    Without points it holds the cameras and what lies as near to their focus as they do.
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
