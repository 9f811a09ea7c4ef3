"""Cameras, scenes, rays, batches and rendered output: frozen groups of named tensors."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A frozen record of tensors that share batch axes; other values pass through untouched."""

    def map(self, fn):
        """A new record with `fn` applied to each tensor, also inside dictionaries."""
        return replace(self, **{f.name: _map(fn, getattr(self, f.name)) for f in fields(self)})

    def to(self, device):
        return self.map(lambda x: x.to(device, non_blocking=True))

    def __getitem__(self, index):
        """The records at `index` of the first batch axis; scalars belong to all of them."""
        return self.map(lambda x: x[index] if x.dim() else x)


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

    Scalars and values that are no tensors are taken from the first.
    """
    first = records[0]
    joined = {f.name: _concatenate([getattr(r, f.name) for r in records]) for f in fields(first)}
    return replace(first, **joined)


def _concatenate(values):
    if isinstance(values[0], TensorRecord):
        return concatenate(values)
    if isinstance(values[0], Tensor) and values[0].dim():
        return torch.cat(values)
    if isinstance(values[0], dict):
        return {key: _concatenate([v[key] for v in values]) for key in values[0]}
    return values[0]


@dataclass(frozen=True, kw_only=True)
class Cameras(TensorRecord):
    """N pinhole or fisheye cameras with OpenGL axes: x right, y up, looking along -z.

    camtoworlds: `[N, 3, 4]` rotation and position.
    pixtocams: `[N, 3, 3]`, from (x, y, 1) in pixels to a camera direction with z = -1. Inverse
        intrinsics of the OpenCV kind (z = +1, y down) are turned into these.
    sizes: `[N, 2]` width and height in pixels.
    near, far: `[N]` or a number, the range of t along a ray.
    lossmult: `[N]` or a number, the weight of a pixel in the loss.
    distortion: `[N, 6]` k1, k2, k3, k4, p1, p2 in normalized coordinates, or None. k1…k4 are the
        polynomial in r² (pinhole; OpenCV's own k4 is another term) or in the squared angle
        (fisheye, as OpenCV's); p1, p2 are OpenCV's.
    fisheye: `[N]` bool, which cameras are equidistant fisheyes; None if none.
    ndc: (focal, width, height) in pixels if rays are made in NDC, else None.
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
class Scene(TensorRecord):
    """The pictures of one split and the cameras that took them.

    pixels: uint8 `[P, C]`, all images one after another, row by row; C = 4 keeps straight alpha.
        Of pictures under known lights half floats `[P, 4]`, linear radiance times alpha, and alpha.
        None where the pictures were not read.
    offsets: `[N+1]`, where each image begins in `pixels`.
    cameras: `Cameras` of the N images; names: their names; files: where they lie, empty in the
        facts that a checkpoint keeps; labels: `[N]` the scale of a Multicam image (0 is the
        finest), or None.
    masks: uint8 `[P]`, 1 where a pixel counts, or None if all do; mask_files: for each image where
        its mask lies, or None; empty if no image has one, and in the facts.
    background: 1.0 (white) or 0.0 (black), what transparent pixels are composited on.
    world_to_scene: `[4, 4]` similarity from the files' coordinates to the cameras'.
    box: `[2, 3]` corners that hold the scene, in the coordinates of rays (NDC for NDC scenes).
    lights: what shone on the scene in each picture, a record of tensors `[N, K, C]`, if known.
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

    def light_rays(self, rays, index):
        """Rays under the lights of one picture; as they are where these are not known."""
        return rays if self.lights is None else rays.with_lights(self.lights[index])

    @property
    def scale(self):
        """How many units of the cameras' world one unit of the scene's files is."""
        return float(torch.linalg.det(self.world_to_scene[:3, :3].double())) ** (1 / 3)


@dataclass(frozen=True, kw_only=True)
class Rays(TensorRecord):
    """Rays with the cone radius that a pixel has at t = 1; all `[..., 3]` or `[..., 1]`.

    lights: what shines on the scene, if that is known: a record of tensors `[..., K, C]`.
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

    @property
    def shape(self):
        """The batch axes."""
        return self.origins.shape[:-1]

    def with_lights(self, lights):
        """The same rays under lights `[K, C]` that shine on all of them."""
        return replace(self, lights=lights.map(lambda x: x.expand(*self.shape, *x.shape)))

    def flatten(self):
        """The same rays with one batch axis."""
        count = len(self.shape)
        return self.map(lambda x: x.reshape(-1, *x.shape[count:]))

    def __len__(self):
        return len(self.origins)


@dataclass(frozen=True, kw_only=True)
class Batch(TensorRecord):
    """Rays and the colours they should have, composited on the scene's background.

    rgb: `[..., 3]`; mask: `[..., 1]`, 1 where a pixel counts, or None.
    batch_index: `[...]`, each ray's index in the whole batch, of which this is a part; None in
        images.
    lossmult_sum: the sum of the loss weights over the whole batch of which this is a part, a
        scalar, so that the losses of its parts add up to that of the whole; None if it is whole.
    """

    rays: Rays
    rgb: Tensor
    mask: Tensor | None = None
    batch_index: Tensor | None = None
    lossmult_sum: Tensor | None = None

    def loss_weights(self):
        """The weight of each ray in the loss, `[..., 1]`."""
        return self.rays.lossmult if self.mask is None else self.rays.lossmult * self.mask

    def total_weight(self):
        """What a weighted mean over the whole batch divides by."""
        if self.lossmult_sum is not None:
            return self.lossmult_sum
        # All pixels of a batch may be masked; its loss is then 0.
        return self.loss_weights().sum().clamp(min=1e-9)

    def split(self, size):
        """Parts of at most `size` rays whose losses add up to that of this (flat) batch."""
        whole = replace(self, lossmult_sum=self.total_weight())
        return [whole[i : i + size] for i in range(0, len(self.rays), size)]


@dataclass(frozen=True, kw_only=True)
class RenderOutput(TensorRecord):
    """What one level of a model sees along rays.

    rgb: `[..., 3]`; acc: `[...]` opacity; distance_mean, distance_median: `[...]` in t.
    sdist, tdist: `[..., S+1]` fence posts in [0, 1] and in t; weights: `[..., S]`. These three are
    None in whole pictures, which keep what a pixel has one of.
    extras: named quantities per ray.
    """

    rgb: Tensor
    acc: Tensor
    distance_mean: Tensor
    distance_median: Tensor
    sdist: Tensor | None = None
    tdist: Tensor | None = None
    weights: Tensor | None = None
    extras: dict = field(default_factory=dict)

    def __post_init__(self):
        batch = self.rgb.shape[:-1]
        assert self.rgb.shape == (*batch, 3), self.rgb.shape
        for name in ("acc", "distance_mean", "distance_median"):
            assert getattr(self, name).shape == batch, (name, getattr(self, name).shape, batch)
        if self.weights is not None:
            assert self.weights.shape[:-1] == batch, (self.weights.shape, batch)
            posts = (*batch, self.weights.shape[-1] + 1)
            for name in ("sdist", "tdist"):
                found = getattr(getattr(self, name), "shape", None)
                assert found == posts, (name, found, posts)
