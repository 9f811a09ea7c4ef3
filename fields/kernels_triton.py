"""The hash encoding's GPU kernels, compiled by Triton when they are first called.

They compute what `hash_grid.encode_torch` computes; tests compare the two, without a GPU in
Triton's interpreter. A program processes a block of points at one level. Programs of a level are
launched one after another, so that one level's entries stay in the L2 cache.
"""

import functools

import torch
import triton
import triton.language as tl

# Points per program: one per thread of four warps.
BLOCK = 128

# The hash's factors, as in `hash_grid.PRIMES`. Products wrap at 32 bits, which keeps the low bits:
# all that a table index uses.
PRIME_Y, PRIME_Z = tl.constexpr(19349663), tl.constexpr(83492791)


def forward(points, weights, table, levels):
    """Features `[M, L * F]` in float32; see `hash_grid.encode`."""
    features = points.new_empty(len(points), len(levels.num_entries) * table.shape[1])
    if len(points):
        _forward[_grid(points, levels)](
            *_contiguous(points, weights, table), _constants(levels, table.device), features,
            len(points), **_sizes(points, table, levels))
    return features


def table_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the table, `[entries, F]`; arguments as in `points_gradient`.

    It is summed in float32 by atomic additions, whose order, and so rounding, varies between runs.
    """
    grad_table = torch.zeros_like(table, dtype=torch.float32)
    if len(points):
        _table_gradient[_grid(points, levels)](
            *_contiguous(gradient, points, weights), _constants(levels, table.device), grad_table,
            len(points), **_sizes(points, table, levels))
    return grad_table.to(table.dtype)


def points_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the points, `[M, J, 3]`.

    gradient: gradient by the features, `[M, L * F]`; other arguments: as in `forward`.
    """
    grad_points = torch.empty_like(points, memory_format=torch.contiguous_format)
    count = points.shape[0] * points.shape[1]
    if count:
        _points_gradient[(triton.cdiv(count, BLOCK),)](
            *_contiguous(gradient, points, weights, table), _constants(levels, table.device),
            grad_points, count, **_sizes(points, table, levels))
    return grad_points


def _contiguous(*tensors):
    return [tensor.detach().contiguous() for tensor in tensors]


def _grid(points, levels):
    """Programs by block of points, which varies fastest, and by level."""
    return triton.cdiv(len(points), BLOCK), len(levels.num_entries)


def _sizes(points, table, levels):
    """Sizes for which a kernel is compiled."""
    width = table.shape[1]
    return {"LEVELS": len(levels.num_entries), "MEMBERS": points.shape[1], "WIDTH": width,
            "PADDED": triton.next_power_of_2(width), "BLOCK": BLOCK}


@functools.cache
def _constants(levels, device):
    """Resolution, offset, number of entries and whether it is dense of each level: int32 `[4, L]`.

    Kept per device, so that calls copy nothing from the host.
    """
    dense = [int(levels.is_dense(level)) for level in range(len(levels.num_entries))]
    return torch.tensor([*levels, dense], dtype=torch.int32, device=device)


@triton.jit
def _level(constants_ptr, level, LEVELS: tl.constexpr):
    """Resolution, offset, number of entries and whether it is dense of a level."""
    return (tl.load(constants_ptr + level), tl.load(constants_ptr + LEVELS + level),
            tl.load(constants_ptr + 2 * LEVELS + level),
            tl.load(constants_ptr + 3 * LEVELS + level) > 0)


@triton.jit
def _axis(points_ptr, at, valid, resolution, is_dense):
    """The two nearest cell centres along an axis, and their weights.

    at: index of the coordinate, clamped to [0, 1]; NaN becomes 0, since it must not become a table
    index. Beyond the outermost centres of a dense level there is nothing: such weights are 0.
    """
    x = tl.load(points_ptr + at, mask=valid, other=0.0)
    x = tl.where(x > 0, x, 0.0)
    x = tl.where(x < 1, x, 1.0)
    position = x * resolution.to(tl.float32) - 0.5
    floor = tl.floor(position)
    low = floor.to(tl.int32)
    high, weight_high = low + 1, position - floor
    weight_low = tl.where(is_dense & (low < 0), 0.0, 1 - weight_high)
    weight_high = tl.where(is_dense & (high == resolution), 0.0, weight_high)
    low = tl.where(is_dense & (low < 0), 0, low)
    high = tl.where(is_dense & (high == resolution), low, high)
    return low, high, weight_low, weight_high


@triton.jit
def _slopes(low, high):
    """Derivatives of the two weights of `_axis`; 0 where there is no centre (low equals high)."""
    slope_low = tl.where((low == high) & (low == 0), 0.0, -1.0)
    slope_high = tl.where((low == high) & (low > 0), 0.0, 1.0)
    return slope_low, slope_high


@triton.jit
def _table_index(x, y, z, resolution, offset, num_entries, is_dense):
    """Table index of cells (x, y, z), as in `hash_grid.table_index`."""
    dense = (x * resolution + y) * resolution + z
    hashed = x ^ (y * PRIME_Y) ^ (z * PRIME_Z)
    return (offset + tl.where(is_dense, dense, hashed & (num_entries - 1))).to(tl.int64)


@triton.jit
def _forward(points_ptr, weights_ptr, table_ptr, constants_ptr, features_ptr, num_groups,
             LEVELS: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr,
             PADDED: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    resolution, offset, num_entries, is_dense = _level(constants_ptr, level, LEVELS)
    m = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    valid = m < num_groups
    f = tl.arange(0, PADDED)
    mask = valid[:, None] & (f < WIDTH)[None, :]
    total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for j in range(MEMBERS):
        p = m * MEMBERS + j
        x0, x1, u0, u1 = _axis(points_ptr, 3 * p, valid, resolution, is_dense)
        y0, y1, v0, v1 = _axis(points_ptr, 3 * p + 1, valid, resolution, is_dense)
        z0, z1, w0, w1 = _axis(points_ptr, 3 * p + 2, valid, resolution, is_dense)
        weight = tl.load(weights_ptr + p * LEVELS + level, mask=valid, other=0.0) / MEMBERS
        for corner in tl.static_range(8):
            index = _table_index(x1 if corner & 1 else x0, y1 if corner & 2 else y0,
                                 z1 if corner & 4 else z0, resolution, offset, num_entries,
                                 is_dense)
            scale = ((u1 if corner & 1 else u0) * (v1 if corner & 2 else v0)
                     * (w1 if corner & 4 else w0) * weight)
            entry = tl.load(table_ptr + index[:, None] * WIDTH + f[None, :], mask=mask, other=0.0)
            total += scale[:, None] * entry.to(tl.float32)
    at = (m * LEVELS + level)[:, None] * WIDTH + f[None, :]
    tl.store(features_ptr + at, total, mask=mask)


@triton.jit
def _table_gradient(gradient_ptr, points_ptr, weights_ptr, constants_ptr, grad_ptr, num_groups,
                    LEVELS: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr,
                    PADDED: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.program_id(1)
    resolution, offset, num_entries, is_dense = _level(constants_ptr, level, LEVELS)
    m = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    valid = m < num_groups
    f = tl.arange(0, PADDED)
    mask = valid[:, None] & (f < WIDTH)[None, :]
    at = (m * LEVELS + level)[:, None] * WIDTH + f[None, :]
    gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0)
    # Intervals without weight, such as most of a proposal's, add nothing.
    mask &= (tl.sum((gradient != 0).to(tl.int32), axis=1) > 0)[:, None]
    for j in range(MEMBERS):
        p = m * MEMBERS + j
        x0, x1, u0, u1 = _axis(points_ptr, 3 * p, valid, resolution, is_dense)
        y0, y1, v0, v1 = _axis(points_ptr, 3 * p + 1, valid, resolution, is_dense)
        z0, z1, w0, w1 = _axis(points_ptr, 3 * p + 2, valid, resolution, is_dense)
        weight = tl.load(weights_ptr + p * LEVELS + level, mask=valid, other=0.0) / MEMBERS
        for corner in tl.static_range(8):
            index = _table_index(x1 if corner & 1 else x0, y1 if corner & 2 else y0,
                                 z1 if corner & 4 else z0, resolution, offset, num_entries,
                                 is_dense)
            scale = ((u1 if corner & 1 else u0) * (v1 if corner & 2 else v0)
                     * (w1 if corner & 4 else w0) * weight)
            tl.atomic_add(grad_ptr + index[:, None] * WIDTH + f[None, :],
                          scale[:, None] * gradient, mask=mask, sem="relaxed")


@triton.jit
def _points_gradient(gradient_ptr, points_ptr, weights_ptr, table_ptr, constants_ptr, grad_ptr,
                     num_points, LEVELS: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr,
                     PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """A program sums over all levels, so that no additions are atomic."""
    p = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    valid = p < num_points
    f = tl.arange(0, PADDED)
    mask = valid[:, None] & (f < WIDTH)[None, :]
    du = tl.zeros((BLOCK,), dtype=tl.float32)
    dv = tl.zeros((BLOCK,), dtype=tl.float32)
    dw = tl.zeros((BLOCK,), dtype=tl.float32)
    for level in range(LEVELS):
        resolution, offset, num_entries, is_dense = _level(constants_ptr, level, LEVELS)
        x0, x1, u0, u1 = _axis(points_ptr, 3 * p, valid, resolution, is_dense)
        y0, y1, v0, v1 = _axis(points_ptr, 3 * p + 1, valid, resolution, is_dense)
        z0, z1, w0, w1 = _axis(points_ptr, 3 * p + 2, valid, resolution, is_dense)
        du0, du1 = _slopes(x0, x1)
        dv0, dv1 = _slopes(y0, y1)
        dw0, dw1 = _slopes(z0, z1)
        weight = tl.load(weights_ptr + p * LEVELS + level, mask=valid, other=0.0)
        weight *= resolution.to(tl.float32) / MEMBERS
        at = ((p // MEMBERS) * LEVELS + level)[:, None] * WIDTH + f[None, :]
        gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0)
        for corner in tl.static_range(8):
            index = _table_index(x1 if corner & 1 else x0, y1 if corner & 2 else y0,
                                 z1 if corner & 4 else z0, resolution, offset, num_entries,
                                 is_dense)
            entry = tl.load(table_ptr + index[:, None] * WIDTH + f[None, :], mask=mask, other=0.0)
            product = tl.sum(entry.to(tl.float32) * gradient, axis=1) * weight
            u, v, w = (u1 if corner & 1 else u0), (v1 if corner & 2 else v0), (
                w1 if corner & 4 else w0)
            du += product * (du1 if corner & 1 else du0) * v * w
            dv += product * (dv1 if corner & 2 else dv0) * u * w
            dw += product * (dw1 if corner & 4 else dw0) * u * v
    for axis in tl.static_range(3):
        x = tl.load(points_ptr + 3 * p + axis, mask=valid, other=0.0)
        slope = du if axis == 0 else (dv if axis == 1 else dw)
        # Clamping is flat; NaN is neither.
        tl.store(grad_ptr + 3 * p + axis, tl.where((x >= 0) & (x <= 1), slope, 0.0), mask=valid)
