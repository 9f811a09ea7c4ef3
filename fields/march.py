"""Images of a hash grid by marching rays front to back through an occupancy grid.

Samples are a fraction of a cell apart, lie in occupied cells only, and need no proposals; a ray
ends once little light passes. Colours are evaluated where they count. `march` runs the kernel of
march_numba.py, on a CPU; `march_torch` is its plain twin.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import coord
from fields.base import is_skip_layer
from fields.hash import CONTRACTED_RADIUS, PRECONDITIONING, HashField
from fields.occupancy import MarchGrid, find_occupied, halved
from structures import Rays

# Cells per side of the grid, and intervals per cell (without contraction and with it) and at least
# per ray. With 1 per cell images are 0.4 to 0.7 dB worse against the photographs.
RESOLUTION, STEPS_PER_CELL, MIN_STEPS = 128, {False: 2.5, True: 3.0}, 16

# Fields with levels of more cells per side have thinner surfaces, and a grid of cells half as wide.
LARGEST_COARSE = 256

# A ray ends at this transmittance, and lighter samples are not shaded by themselves.
MIN_TRANSMITTANCE, MIN_WEIGHT = 0.01, 0.003

# Points whose density is queried at once for the grid.
CHUNK_POINTS = 1 << 18

# The kernel takes matrices whose sides are multiples of this.
ALIGNMENT = 8


class MarchOptions(NamedTuple):
    """How rays are marched.

    step: length of an interval, as a fraction of the grid's side (in contracted space, if there is
    a contraction); longest: its largest length, as a fraction of a ray. A ray ends where its
    transmittance is at most min_transmittance; the sample is then its last, and the ray counts as
    opaque. Samples of weight up to min_weight get the mean colour of the ray's others.
    is_cone: whether footprints grow with t; is_opaque: whether the end of a ray is opaque
    (`opaque_background`); padding: `Head.rgb_padding`; background: the colour behind rays.
    """

    step: float
    longest: float
    min_transmittance: float
    min_weight: float
    is_cone: bool
    is_opaque: bool
    padding: float
    background: float


class MarchOutput(NamedTuple):
    """Per ray: rgb `[R, 3]`, acc `[R]`, and in t the median distance and the logarithm of the mean.

    Rays that never let less than half of the light pass have median -1; those without a shaded
    sample have log_mean -1 and acc 0.
    """

    rgb: Tensor
    acc: Tensor
    median: Tensor
    log_mean: Tensor


class PackedField(NamedTuple):
    """The weights of a `HashField` as the kernel reads them; the constant factors are folded in.

    table, resolutions, offsets, sizes: of the grid;
    params: all matrices (row by row) and biases; trunk: rows, inputs, and offsets of matrix and
    bias of each layer; density: the same for the density's row; colour: for each layer the rows;
    inputs and offset of the matrix for the layer before (0 for none), and for the trunk's output;
    offset of the bias; first row among the terms of the direction, -1 if it has none.
    num_features, width: rows of the buffers for features and hidden layers.
    """

    table: np.ndarray
    resolutions: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    downweight: bool
    append_scale: bool
    params: np.ndarray
    trunk: np.ndarray
    density: np.ndarray
    colour: np.ndarray
    num_features: int
    width: int


class _Packer:
    """Collects padded matrices and biases in one array."""

    def __init__(self) -> None:
        self.arrays: list[Tensor] = []
        self.size = 0

    def add(self, values: Tensor) -> int:
        """Append values, padded along all axes; returns their offset."""
        for axis in range(values.dim()):
            missing = -values.shape[axis] % ALIGNMENT
            values = torch.cat([values, values.new_zeros(
                *values.shape[:axis], missing, *values.shape[axis + 1:])], dim=axis)
        self.arrays.append(values.flatten())
        self.size += values.numel()
        return self.size - values.numel()


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


@dataclass(frozen=True)
class DirectionTerms:
    """The terms of the view branch that depend on directions: `weight [D, E]`, `bias [D]`."""

    weight: Tensor
    bias: Tensor
    view_deg: int

    def __call__(self, view_inputs: Tensor) -> Tensor:
        """The terms `[D, R]` of inputs `[R, V]`."""
        if not len(self.bias):
            return view_inputs.new_zeros(0, len(view_inputs))
        encoded = coord.pos_enc(view_inputs, 0, self.view_deg)
        return torch.addmm(self.bias[:, None], self.weight, encoded.T)


@torch.no_grad()
def pack_field(field: HashField, appearance: Tensor | None = None
               ) -> tuple[PackedField, DirectionTerms]:
    """The weights of a field with colour, for the kernel.

    appearance: embedding `[N]` of a photograph, zero if None.
    """
    packer, trunk = _Packer(), []
    for layer, (weight, bias) in enumerate(_trunk_layers(field)):
        if layer == 0:
            num_features = _aligned(weight.shape[1])
        trunk.append((_aligned(weight.shape[0]), _aligned(weight.shape[1]), packer.add(weight),
                      packer.add(bias)))
    density = (field.density.in_features, 1, packer.add(field.density.weight[0]),
               packer.add(field.density.bias + field.density_bias))
    colour, directions = _pack_colour(field, packer, appearance)
    widths = [row[0] for row in trunk] + [row[0] for row in colour]
    resolutions, offsets, sizes = (np.array(values, dtype=np.int64) for values in field.levels)
    packed = PackedField(
        table=field.table.detach().float().contiguous().numpy(), resolutions=resolutions,
        offsets=offsets, sizes=sizes, downweight=field.downweight,
        append_scale=field.append_scale, params=torch.cat(packer.arrays).float().numpy(),
        trunk=np.array(trunk, dtype=np.int64), density=np.array(density, dtype=np.int64),
        colour=np.array(colour, dtype=np.int64), num_features=num_features, width=max(widths))
    return packed, directions


def _trunk_layers(field):
    """Weights and biases of the trunk, the first for plain features and levels' weights."""
    first, *rest = [(layer.weight, layer.bias) for layer in field.trunk]
    weight, bias = PRECONDITIONING * first[0], first[1]
    if field.append_scale:
        # The feature of a level is (2 w - 1) scale; the kernel's is w.
        weight = weight.unflatten(1, (len(field.levels.resolutions), -1)).clone()
        last = weight[..., -1] * field._scales_of_entries()
        weight[..., -1] = 2 * last
        weight, bias = weight.flatten(1), bias - last.sum(dim=1)
    return [(weight, bias), *rest]


def _pack_colour(field, packer, appearance):
    """The layers after the trunk, of which the linear bottleneck is folded into the next."""
    if not field.use_viewdirs:
        none = field.rgb.weight.new_zeros(0)
        row = (_aligned(field.rgb.out_features), 0, 0, _aligned(field.rgb.in_features),
               packer.add(field.rgb.weight), packer.add(field.rgb.bias), -1)
        return [row], DirectionTerms(none[:, None], none, 0)
    matrix, shift = field.bottleneck.weight, field.bottleneck.bias
    if field.head.glo_features:
        if appearance is None:
            appearance = shift.new_zeros(field.head.glo_features)
        scale, added = field.appearance.scale_and_shift(appearance)
        matrix, shift = scale[:, None] * matrix, scale * shift + added
    rows, weights, biases, count = [], [], [], 0
    for i, layer in enumerate([*field.view, field.rgb]):
        is_first, size = i == 0, _aligned(layer.out_features)
        before = 0 if is_first else field.view[i - 1].out_features
        takes_inputs = is_first or is_skip_layer(i - 1, field.head.view_skip)
        own = packer.add(layer.weight[:, :before]) if before else 0
        if not takes_inputs:
            rows.append((size, _aligned(before), own, 0, 0, packer.add(layer.bias), -1))
            continue
        width = before + len(matrix)
        of_bottleneck = layer.weight[:, before:width]
        rows.append((size, _aligned(before), own, _aligned(matrix.shape[1]),
                     packer.add(of_bottleneck @ matrix), 0, count))
        missing = size - layer.out_features
        weights.append(F.pad(layer.weight[:, width:], (0, 0, 0, missing)))
        biases.append(F.pad(layer.bias + of_bottleneck @ shift, (0, missing)))
        count += size
    return rows, DirectionTerms(torch.cat(weights), torch.cat(biases), field.head.view_deg)


class _Rays(NamedTuple):
    """Rays `[R]` as the kernel reads them; starts, ends: range of t inside the grid."""

    origins: np.ndarray
    directions: np.ndarray
    radii: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class _Grid(NamedTuple):
    skip: np.ndarray
    centre: np.ndarray
    side: np.float32
    contraction: bool


class _Out(NamedTuple):
    rgb: np.ndarray
    acc: np.ndarray
    median: np.ndarray
    log_mean: np.ndarray


def march(packed: PackedField, directions: DirectionTerms, grid: MarchGrid, options: MarchOptions,
          rays: Rays, view_inputs: Tensor) -> MarchOutput:
    """March flat float32 rays on a CPU; view_inputs: `[R, V]` inputs of the view branch."""
    from fields import march_numba

    start, end = ray_range(grid, rays)
    ray_arrays = _Rays(*(x.contiguous().numpy() for x in (
        rays.origins, rays.directions, rays.radii[:, 0], start, end)))
    grid_arrays = _Grid(grid.skip.numpy(), grid.centre.numpy(), np.float32(grid.side),
                        grid.contraction)
    out = MarchOutput(torch.empty(len(rays), 3), *torch.empty(3, len(rays)))
    in_float32: dict[str, Any] = {
        name: np.float32(value) for name, value in options._asdict().items()
        if not isinstance(value, bool)}
    march_numba.march(ray_arrays, grid_arrays, packed, options._replace(**in_float32),
                      directions(view_inputs).contiguous().numpy(),
                      _Out(*(x.numpy() for x in out)))
    return out


def ray_range(grid: MarchGrid, rays: Rays) -> tuple[Tensor, Tensor]:
    """Range of t, `[R]` and `[R]`, in which flat rays are inside the grid; empty if start >= end.
    """
    near, far = rays.near[:, 0], rays.far[:, 0]
    if grid.contraction:
        return near, far
    half = 0.5 * grid.side
    # A direction of 0 gives infinities of the right sign.
    ends = torch.stack([(grid.centre + sign * half - rays.origins) / rays.directions
                        for sign in (-1, 1)]).nan_to_num(nan=0.0, posinf=3e38, neginf=-3e38)
    start = torch.maximum(near, ends.amin(dim=0).amax(dim=-1))
    return start, torch.maximum(start, torch.minimum(far, ends.amax(dim=0).amin(dim=-1)))


@dataclass(frozen=True)
class Footprints:
    """How wide pixels are where the training cameras look, for the densities of the grid.

    radius: of a ray at t = 1; positions: `[K, 3]` of cameras, or None for cylinders, which are
    equally wide everywhere.
    """

    radius: float
    positions: Tensor | None

    def stds(self, points: Tensor) -> Tensor:
        """Standard deviations `[M]` of the footprint at points `[M, 3]`, of the nearest camera."""
        if self.positions is None:
            return torch.full_like(points[:, 0], 0.5 * self.radius)
        return 0.5 * self.radius * torch.cdist(points, self.positions).amin(dim=-1)


class Marcher:
    """Marches rays of one field; its weights and its grid are computed once, here."""

    def __init__(self, field: HashField, footprints: Footprints, background: float,
                 is_opaque: bool):
        self.packed, self.directions = pack_field(field)
        self.grid = build_grid(field, self.packed, footprints)
        steps = STEPS_PER_CELL[field.contraction] * len(self.grid.skip)
        self.options = MarchOptions(
            step=1 / steps, longest=1 / MIN_STEPS,
            min_transmittance=MIN_TRANSMITTANCE, min_weight=MIN_WEIGHT,
            is_cone=footprints.positions is not None, is_opaque=is_opaque,
            padding=field.head.rgb_padding, background=background)

    def with_appearance(self, field: HashField, appearance: Tensor) -> "Marcher":
        """The same with the colours of a photograph's embedding `[N]`."""
        other = copy.copy(self)
        other.packed, other.directions = pack_field(field, appearance)
        return other

    def __call__(self, rays: Rays, view_inputs: Tensor) -> MarchOutput:
        """March flat rays; see `march`."""
        return march(self.packed, self.directions, self.grid, self.options, rays, view_inputs)


@torch.no_grad()
def build_grid(field: HashField, packed: PackedField, footprints: Footprints) -> MarchGrid:
    """The `MarchGrid` of a field."""
    from fields import march_numba

    low, high = field.box
    side, centre = float((high - low).max()), 0.5 * (low + high)

    def opacity(points: Tensor, resolution: int) -> Tensor:
        positions = (points - 0.5) * side + centre
        length, shrink = torch.full_like(points[:, 0], side / resolution), 1.0
        outside = torch.zeros_like(length, dtype=torch.bool)
        if field.contraction:
            outside = positions.norm(dim=-1) >= CONTRACTED_RADIUS
            positions = coord.inv_contract(positions)
            norm = positions.norm(dim=-1).clamp(min=1)
            # A cell is longest along the radius.
            length, shrink = length * norm**2, ((2 * norm - 1) / norm**3) ** (2 / 3)
        stds = footprints.stds(positions) * shrink / side
        density = torch.from_numpy(march_numba.density_at(points.numpy(), stds.numpy(), packed))
        return -torch.expm1(-density * length).where(outside.logical_not(), 0.0)

    def occupied_cells(resolution: int, among: Tensor | None = None) -> Tensor:
        return find_occupied(lambda points: torch.cat(
            [opacity(part, resolution) for part in points.split(CHUNK_POINTS)]), resolution, among)

    occupied = occupied_cells(RESOLUTION)
    if field.levels.resolutions[-1] > LARGEST_COARSE:
        occupied = occupied_cells(2 * RESOLUTION, halved(occupied))
    return MarchGrid.from_cells(occupied, centre, side, field.contraction)


# The plain twin.


@torch.no_grad()
def march_torch(field: HashField, grid: MarchGrid, options: MarchOptions, rays: Rays,
                view_inputs: Tensor) -> MarchOutput:
    """`march` in PyTorch operations and by the field itself, for any device; slow."""
    start, end = ray_range(grid, rays)
    now, is_ended = start.clone(), torch.zeros_like(start, dtype=torch.bool)
    transmittance, shaded = torch.ones_like(start), torch.zeros_like(start)
    median, log_sum = -torch.ones_like(start), torch.zeros_like(start)
    colour = torch.zeros_like(rays.origins)
    while True:
        live = transmittance > options.min_transmittance
        live &= (now < end) | (options.is_opaque & ~is_ended)
        index = live.nonzero()[:, 0]
        if not len(index):
            break
        t, step, occupied, jump, ends = _next_interval(
            grid, options, rays[index], start[index], end[index], now[index])
        now[index], is_ended[index] = torch.where(ends, end[index], t + jump), ends
        index, t, step, ends = (x[occupied] for x in (index, t, step, ends))
        if not len(index):
            continue
        middle = t + 0.5 * step
        rgb, alpha = _query(field, grid, options, rays[index], view_inputs[index], middle, step)
        alpha = torch.where(ends, 1.0, alpha)
        before = transmittance[index]
        weight = before * alpha
        transmittance[index] = before - weight
        crosses = (before > 0.5) & (before - weight <= 0.5)
        median[index] = torch.where(crosses, t + step * (before - 0.5) / weight, median[index])
        weight = weight.where(weight > options.min_weight, 0.0)
        shaded[index] += weight
        log_sum[index] += weight * middle.clamp(min=1e-30).log()
        colour[index] += weight[:, None] * rgb
    acc = torch.where(transmittance <= options.min_transmittance, 1.0, 1 - transmittance)
    acc = acc.where(shaded > 0, 0.0)
    mean = (colour / shaded[:, None]).where(shaded[:, None] > 0, 0.0)
    rgb = acc[:, None] * mean + (1 - acc[:, None]) * options.background
    return MarchOutput(rgb, acc, median, (log_sum / shaded).where(shaded > 0, -1.0))


def _next_interval(grid, options, rays, start, end, now):
    """Start and length `[R]` of each ray's next interval, whether it is sampled, how far it is to
    the one after, and whether it is the opaque end."""
    length = rays.directions.norm(dim=-1)
    ends = now >= end
    points = rays.origins + now[:, None] * rays.directions
    speed = contracted_speed(points, rays.directions) if grid.contraction else length
    step = torch.minimum(options.step * grid.side / speed, options.longest * (end - start))
    t = torch.where(ends, end - step.minimum(end - start), now)
    step = torch.maximum(step, 1e-6 * t.abs()).minimum(end - t)
    points = rays.origins + (t + 0.5 * step)[:, None] * rays.directions
    resolution = grid.skip.shape[0]
    inside = coord.contract(points) if grid.contraction else points
    cells = ((inside - grid.centre) / grid.side + 0.5) * resolution
    x, y, z = cells.nan_to_num(0.0).clamp(0, resolution - 1).long().unbind(-1)
    distance = grid.skip[x, y, z].to(step)
    empty = (distance - 1).clamp(min=0) * grid.side / resolution
    if grid.contraction:
        jump = empty / _largest_speed(points, rays.directions, empty)
    else:
        jump = empty / rays.directions.abs().amax(dim=-1)
    occupied = (distance == 0) | ends
    return t, step, occupied, torch.where(occupied, step, torch.maximum(step, jump)), ends


def contracted_speed(points: Tensor, directions: Tensor) -> Tensor:
    """Length in contracted space per t, `[R]`, at points of rays."""
    norm = points.norm(dim=-1).clamp(min=1)
    squared, along = (directions**2).sum(dim=-1), (points * directions).sum(dim=-1)
    radial = along**2 / norm**2
    across = (2 * norm - 1) / norm**2
    outside = (across**2 * (squared - radial).clamp(min=0) + radial / norm**4).sqrt()
    return torch.where(norm > 1, outside, squared.sqrt())


def _largest_speed(points, directions, distance):
    """A bound of the contracted speed until a ray has gone a `distance [R]` in contracted space."""
    norm = points.norm(dim=-1).clamp(min=1)
    along = (points * directions).sum(dim=-1)
    nearest = (norm - distance * norm**2 / (2 * norm - 1)).clamp(min=1)
    inward = (2 * nearest - 1) / nearest**2 * directions.norm(dim=-1)
    never_faster = (along >= 0) | (norm <= 1)
    return torch.where(never_faster, contracted_speed(points, directions), inward)


def _query(field, grid, options, rays, view_inputs, middle, step):
    """Colours and opacities of intervals around `middle [R]`."""
    points = rays.origins + middle[:, None] * rays.directions
    radius = rays.radii[:, 0] * (middle if options.is_cone else 1)
    gaussians = coord.IsotropicGaussians(points[:, None, None], (0.5 * radius)[:, None, None])
    samples = field(gaussians, view_inputs)
    length = step * rays.directions.norm(dim=-1)
    return samples.rgb[:, 0], -torch.expm1(-samples.density[:, 0] * length)
