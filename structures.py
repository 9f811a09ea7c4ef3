"""Cameras, scenes, rays, batches and rendered output: frozen records of named tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A frozen record of tensors with common batch axes; other values pass through unchanged."""

    def map(self, fn: Callable[[Tensor], Tensor]):
        """A new record with `fn` applied to each tensor, also in nested records and dicts."""
        return replace(self, **{f.name: _map(fn, getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str):
        """A copy on a device, which does not block if that is CUDA."""
        # A copy to the CPU could be read before it has arrived.
        non_blocking = torch.device(device).type == "cuda"
        # MPS has no 64-bit numbers.
        narrow = torch.device(device).type == "mps"
        return self.map(lambda x: (x.float() if narrow and x.dtype == torch.float64 else x).to(
            device, non_blocking=non_blocking))

    def __getitem__(self, index):
        """The record at `index` of the first batch axis; scalars are kept as they are."""
        return self.map(lambda x: x[index] if x.dim() else x)

    def is_close(self, other: "TensorRecord") -> bool:
        """Whether two records of the same type have equal tensors, up to rounding."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-5)
                   for a, b in pairs if isinstance(a, Tensor))


def _map(fn, value):
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, TensorRecord):
        return value.map(fn)
    if isinstance(value, dict):
        return {key: _map(fn, item) for key, item in value.items()}
    return value


def concatenate(records):
    """One record whose tensors are those of `records` (at least one), joined along axis 0.

    Scalars and values other than tensors are taken from the first record.
    """
    return _join(lambda values: torch.cat(values) if values[0].dim() else values[0], records)


def stack(records):
    """One record whose tensors are those of `records` (at least one), along a new first axis."""
    return _join(torch.stack, records)


def _join(join, values):
    """Join equal nested records and dicts of tensors; other values are those of the first."""
    first = values[0]
    if isinstance(first, Tensor):
        return join(values)
    if isinstance(first, TensorRecord):
        return replace(first, **{f.name: _join(join, [getattr(value, f.name) for value in values])
                                 for f in fields(first)})
    if isinstance(first, dict):
        return {key: _join(join, [value[key] for value in values]) for key in first}
    return first


@dataclass(frozen=True, kw_only=True)
class Cameras(TensorRecord):
    """N pinhole or fisheye cameras with OpenGL axes: x right, y up, looking along -z.

    camtoworlds: `[N, 3, 4]` rotation and position.
    pixtocams: `[N, 3, 3]`, from (x, y, 1) in pixels to a camera direction with z = -1. Inverse
        intrinsics in OpenCV's convention (z = +1, y down) are converted.
    sizes: `[N, 2]` width and height in pixels.
    near, far: `[N]` or a number, the range of t along a ray.
    lossmult: `[N]` or a number, the weight of a pixel in the loss.
    distortion: `[N, 6]` k1, k2, k3, k4, p1, p2 in normalized coordinates, or None. k1…k4 are the
        polynomial in r² (pinhole; OpenCV's own k4 is another term) or in the squared angle
        (fisheye, as OpenCV's); p1, p2 are OpenCV's.
    fisheye: `[N]` bool, which cameras are equidistant fisheyes; None if none is.
    ndc: (focal, width, height) in pixels if rays are in NDC, else None.
    visible_range: (nearest, farthest) t of known surface points, None if they are unknown; rays may
        reach beyond it.
    """

    camtoworlds: Tensor
    pixtocams: Tensor
    sizes: Tensor
    near: Tensor | float
    far: Tensor | float
    lossmult: Tensor | float = 1.0
    distortion: Tensor | None = None
    fisheye: Tensor | None = None
    ndc: tuple | None = None
    visible_range: tuple | None = None

    def __post_init__(self):
        for name in ("near", "far", "lossmult"):
            value = torch.as_tensor(getattr(self, name), dtype=self.camtoworlds.dtype)
            value = value.to(self.camtoworlds.device).expand(self.camtoworlds.shape[:-2])
            object.__setattr__(self, name, value)
        opencv = self.pixtocams[..., 2:, 2:] > 0
        flip = torch.tensor([[1.0], [-1.0], [-1.0]]).to(self.pixtocams)
        object.__setattr__(self, "pixtocams", torch.where(opencv, flip, 1.0) * self.pixtocams)

    def __len__(self):
        return len(self.camtoworlds)


@dataclass(frozen=True, kw_only=True)
class SparsePoints(TensorRecord):
    """M points on surfaces, and K observations of them in images.

    positions: `[M, 3]` in the cameras' world; errors: `[M]`, mean reprojection error in pixels.
    image_idx: `[K]`, index of the image; pixels: `[K, 2]`, where it shows the point, in continuous
    coordinates; point_idx: `[K]`, index of the point.
    """

    positions: Tensor
    errors: Tensor
    image_idx: Tensor
    pixels: Tensor
    point_idx: Tensor

    def __len__(self):
        return len(self.positions)

    def check(self) -> None:
        """Raise ValueError if shapes or indices do not fit together."""
        count, seen = len(self.positions), len(self.image_idx)
        shapes = self.positions.shape, self.errors.shape, self.pixels.shape, self.point_idx.shape
        if shapes != ((count, 3), (count,), (seen, 2), (seen,)):
            raise ValueError(f"shapes {shapes} do not fit together")
        if seen and not 0 <= int(self.point_idx.min()) <= int(self.point_idx.max()) < count:
            raise ValueError("an observation has no point")


@dataclass(frozen=True, kw_only=True)
class Scene(TensorRecord):
    """The images of one split and the cameras that took them.

    pixels: uint8 `[P, C]`, all images one after another, row by row; C = 4 keeps straight alpha.
        Images under known lights are half floats `[P, 4]`: linear radiance times alpha, and alpha.
        None if the images were not read.
    offsets: `[N+1]`, the first pixel of each image in `pixels`.
    cameras: `Cameras` of the N images; names: their names; files: their paths, empty in a
        checkpoint; labels: `[N]` the scale of each image, if there are several (0 is the
        finest), or None.
    masks: uint8 `[P]`, 1 where a pixel counts, or None if all do; mask_files: path of each image's
        mask, or None; empty if no image has one, and in a checkpoint.
    background: from 0 (black) to 1 (white), under transparent pixels.
    world_to_scene: `[4, 4]` similarity from the files' coordinates to the cameras', float64: map
        coordinates have seven digits before the point.
    box: `[2, 3]` bounding box of the scene, in the coordinates of rays (NDC for NDC scenes).
    lights: the lights of each image, a record of tensors `[N, K, C]`; None if unknown.
    points: `SparsePoints` that these images show; None if none are known, and in a checkpoint.
    """

    pixels: Tensor | None
    offsets: Tensor
    cameras: Cameras
    names: tuple
    files: tuple = ()
    labels: Tensor | None = None
    masks: Tensor | None = None
    mask_files: tuple = ()
    background: float
    world_to_scene: Tensor
    box: Tensor
    lights: TensorRecord | None = None
    points: SparsePoints | None = None

    def __post_init__(self):
        count = len(self.names)
        assert self.offsets.shape == (count + 1,), (self.offsets.shape, count)
        assert self.cameras.camtoworlds.shape == (count, 3, 4), self.cameras.camtoworlds.shape
        assert self.cameras.pixtocams.shape == (count, 3, 3), self.cameras.pixtocams.shape
        assert self.cameras.sizes.shape == (count, 2), self.cameras.sizes.shape
        if self.pixels is not None:
            assert len(self.pixels) == int(self.offsets[-1]), (self.pixels.shape, self.offsets[-1])
        if self.masks is not None:
            assert self.masks.shape == self.pixels.shape[:1], (self.masks.shape, self.pixels.shape)

    def light_rays(self, rays: "Rays", index: int) -> "Rays":
        """Rays under the lights of one image; unchanged if the lights are unknown."""
        return rays if self.lights is None else rays.with_lights(self.lights[index])

    @property
    def scale(self) -> float:
        """Length of a unit of the scene's files in the cameras' world."""
        return float(torch.linalg.det(self.world_to_scene[:3, :3].double())) ** (1 / 3)


@dataclass(frozen=True, kw_only=True)
class Rays(TensorRecord):
    """Rays of pixels.

    origins, directions (of any length), viewdirs (unit): `[..., 3]`. radii: radius of a pixel's
    cone at t = 1, or of its cylinder; near, far: range of t; lossmult: weight in the loss;
    cam_idx: index of the camera; all `[..., 1]`.
    lights: the scene's lights for each ray, a record of tensors `[..., K, C]`; None if unknown.
    image_idx: `[..., 1]`, index of the photograph, for its appearance embedding; None for rays
        of no training image (`cam_idx` counts the cameras of any split or video).
    """

    origins: Tensor
    directions: Tensor
    viewdirs: Tensor
    radii: Tensor
    near: Tensor
    far: Tensor
    lossmult: Tensor
    cam_idx: Tensor
    lights: TensorRecord | None = None
    image_idx: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The batch axes."""
        return self.origins.shape[:-1]

    def with_lights(self, lights: TensorRecord) -> "Rays":
        """The same rays, each under all lights of a record of tensors `[K, C]`."""
        return replace(self, lights=lights.map(lambda x: x.expand(*self.shape, *x.shape)))

    def flatten(self) -> "Rays":
        """The same rays with one batch axis."""
        count = len(self.shape)
        return self.map(lambda x: x.reshape(-1, *x.shape[count:]))

    def __len__(self):
        return len(self.origins)


@dataclass(frozen=True, kw_only=True)
class Batch(TensorRecord):
    """Rays and their ground-truth colours, composited on the scene's background.

    rgb: `[..., 3]`; mask: `[..., 1]`, 1 where a pixel counts, or None.
    pixels: `[..., 2]`, column and row of each ray's pixel in its image; None in images.
    batch_index: `[...]`, each ray's index in the global batch, of which this may be a part; None
        in images.
    lossmult_sum: sum of the loss weights of the global batch, a scalar, so that the losses of
        micro-batches add up to its loss; None if this is the global batch.
    cells: `[...]`, each pixel's cell in an `OutlierMap`; None without --robust and in images.
    inliers: `[...]` bool, which pixels count in the losses of colours; None if all do.
    penalty_weight: sum of the loss weights for which penalties on parameters count here: in the
        first of several micro-batches that of all, in the others 0.0; None if these rays'.
    distance: `[..., 1]`, t of a known point on each ray; distance_weight: `[..., 1]`, its weight in
        the loss, 0 where no point is known; both None without points.
    """

    rays: Rays
    rgb: Tensor
    mask: Tensor | None = None
    pixels: Tensor | None = None
    batch_index: Tensor | None = None
    lossmult_sum: Tensor | None = None
    cells: Tensor | None = None
    inliers: Tensor | None = None
    penalty_weight: Tensor | float | None = None
    distance: Tensor | None = None
    distance_weight: Tensor | None = None

    def loss_weights(self) -> Tensor:
        """The weight of each ray in the loss, `[..., 1]`."""
        return self.rays.lossmult if self.mask is None else self.rays.lossmult * self.mask

    def total_weight(self) -> Tensor:
        """The divisor of weighted means over the global batch."""
        if self.lossmult_sum is not None:
            return self.lossmult_sum
        # A batch whose pixels are all masked has loss 0.
        return self.loss_weights().sum().clamp(min=1e-9)

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of at most `size` rays whose losses add up to that of this flat batch."""
        whole = replace(self, lossmult_sum=self.total_weight())
        weights = self.loss_weights().sum(), *(len(self.rays) // size) * [0.0]
        return [replace(whole[i : i + size], penalty_weight=weights[i // size])
                for i in range(0, len(self.rays), size)]


@dataclass(frozen=True, kw_only=True)
class RenderOutput(TensorRecord):
    """Composited output of one sampling level.

    rgb: `[..., 3]`; acc: `[...]` opacity; distance_mean, distance_median: `[...]` in t.
    sdist, tdist: `[..., S+1]` fenceposts in [0, 1] and in t; weights: `[..., S]`. These three are
    None in whole images, which keep only per-pixel quantities.
    extras: further quantities per pixel, by name, each `[..., C]`.
    visibility_error: `[...]`, the visibility field's error along each ray (NeRV in training only).
    predicted_normals, density_normals: `[..., S, 3]`, normals of the samples; None if not requested
    and in whole images. normals: `[..., 3]`, those of one kind times the weights, summed (whole
    images only, if requested). All in the coordinates of rays.
    """

    rgb: Tensor
    acc: Tensor
    distance_mean: Tensor
    distance_median: Tensor
    sdist: Tensor | None = None
    tdist: Tensor | None = None
    weights: Tensor | None = None
    extras: dict = field(default_factory=dict)
    visibility_error: Tensor | None = None
    predicted_normals: Tensor | None = None
    density_normals: Tensor | None = None
    normals: Tensor | None = None

    def __post_init__(self):
        batch = self.rgb.shape[:-1]
        assert self.rgb.shape == (*batch, 3), self.rgb.shape
        for name in ("acc", "distance_mean", "distance_median"):
            assert getattr(self, name).shape == batch, (name, getattr(self, name).shape, batch)
        if self.visibility_error is not None:
            assert self.visibility_error.shape == batch, (self.visibility_error.shape, batch)
        if self.normals is not None:
            assert self.normals.shape == self.rgb.shape, (self.normals.shape, batch)
        if self.weights is not None:
            assert self.weights.shape[:-1] == batch, (self.weights.shape, batch)
            expected = (*batch, self.weights.shape[-1] + 1)
            for name in ("sdist", "tdist"):
                shape = getattr(getattr(self, name), "shape", None)
                assert shape == expected, (name, shape, expected)


class Shading(NamedTuple):
    """Shading options of a NeRV, named as their flags.

    shade_at: "samples" (each sample of a ray) or "surface" (one point per ray); bounce_directions:
    directions sampled for indirect light; march_shadows: whether images trace shadow rays through
    the density, instead of querying the visibility field.
    """

    shade_at: str
    bounce_directions: int
    march_shadows: bool

    @classmethod
    def from_config(cls, config) -> "Shading":
        """The shading that a config's flags describe."""
        return cls(config.shade_at, config.bounce_directions, config.march_shadows)
