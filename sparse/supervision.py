"""Rays of training pixels that show a sparse point, and the point's distance along them."""

from dataclasses import dataclass

import torch
from torch import Tensor

import coord
from ray_utils import pixels_to_rays
from structures import Scene, TensorRecord

# Observations count less the larger the error of their point: by exp(-e^2 / 2), e in these pixels.
ERROR_SCALE = 1.0

# A ray passes its point within so many radii of its cone.
MAX_RADII = 4.0


@dataclass(frozen=True, kw_only=True)
class PointRays(TensorRecord):
    """K pixels of training images whose rays meet a known point; all `[K]`.

    index: of the pixel among all pixels of the scene; t: the point's distance along the pixel's
    ray; weight: in the loss.
    """

    index: Tensor
    t: Tensor
    weight: Tensor

    def __len__(self):
        return len(self.index)

    def replace_last(self, index: Tensor, count: int, generator: torch.Generator | None = None
                     ) -> tuple[Tensor, Tensor, Tensor]:
        """Pixel indices `[B]`, of which the last `count` are replaced by random pixels of these.

        Returns the indices, and `[B, 1]` each, the distances of points and their weights, which add
        up to 1; both are 0 for the other pixels.
        """
        count = min(count, len(index))
        chosen = self[torch.randint(len(self), (count,), generator=generator)]
        distance, weight = torch.zeros(2, len(index), 1)
        distance[-count:, 0], weight[-count:, 0] = chosen.t, chosen.weight / chosen.weight.sum()
        return torch.cat([index[:-count], chosen.index]), distance, weight


def point_rays(scene: Scene) -> PointRays | None:
    """The `PointRays` of a scene's points in the range of its rays; None if there are none."""
    points, cameras = scene.points, scene.cameras
    if points is None:
        return None
    cam_idx = points.image_idx
    x, y = points.pixels.floor().long().unbind(dim=-1)
    width, height = cameras.sizes[cam_idx].unbind(dim=-1)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    rays = pixels_to_rays(cameras, cam_idx, x, y)
    positions = points.positions[points.point_idx]
    if cameras.ndc is not None:
        positions = coord.points_to_ndc(positions, *cameras.ndc)
    offset = positions - rays.origins
    t = (offset * rays.directions).sum(dim=-1) / rays.directions.square().sum(dim=-1)
    radius = rays.radii[:, 0] if cameras.ndc is not None else rays.radii[:, 0] * t
    miss = (offset - t[:, None] * rays.directions).norm(dim=-1)
    good = inside & (t > rays.near[:, 0]) & (t < rays.far[:, 0]) & (miss < MAX_RADII * radius)
    if not bool(good.any()):
        return None
    errors = points.errors[points.point_idx] / ERROR_SCALE
    index = scene.offsets[cam_idx] + y * width + x
    return PointRays(index=index[good], t=t[good], weight=torch.exp(-0.5 * errors**2)[good])
