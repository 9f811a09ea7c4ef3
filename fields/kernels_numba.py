"""The hash encoding's CPU kernels, compiled by numba when they are first called.

They compute what `hash_grid.encode_torch` computes; tests compare the two. Tensors go in and come
out; inside they are NumPy arrays that share memory with them.
"""

import math

import numba
import numpy as np
import torch

# Points that one thread processes at once, level by level: their features stay in its cache.
BLOCK = 512

# The largest number of threads that numba can use. Starting numba's threads also sets PyTorch's
# number of threads, even against OMP_NUM_THREADS (which torchrun sets), so read that first.
_PYTORCH_THREADS = torch.get_num_threads()
MAX_THREADS = numba.get_num_threads()
torch.set_num_threads(_PYTORCH_THREADS)

# Constants of float32: with Python integers numba would continue in 64 bits.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)

# The hash's factors, as in `hash_grid.PRIMES`.
PRIME_Y, PRIME_Z = 19349663, 83492791


def _compiled(**options):
    """A decorator that compiles by numba, and caches the result on disk for later processes."""
    def compile_one(function):
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # Neither this folder nor the user's cache is writable.
            return numba.njit(**options)(function)

    return compile_one


def forward(points, weights, table, levels):
    """Features `[M, L * F]`; see `hash_grid.encode`."""
    features = torch.empty(len(points), len(levels.num_entries) * table.shape[1])
    shape = *_levels(levels), _unrolled(table)
    _set_threads()
    _forward(*_arrays(points, weights, table), *shape, features.numpy())
    return features


def table_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the table, `[entries, F]`; arguments as in `points_gradient`."""
    grad_table = torch.zeros_like(table)
    shape = *_levels(levels), _unrolled(table)
    _set_threads()
    _table_gradient(*_arrays(gradient, points, weights), *shape, grad_table.numpy())
    return grad_table


def points_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the points, `[M, J, 3]`.

    gradient: gradient by the features, `[M, L * F]`; other arguments: as in `forward`.
    """
    grad_points = torch.empty_like(points)
    shape = *_levels(levels), _unrolled(table)
    _set_threads()
    _points_gradient(*_arrays(gradient, points, weights, table), *shape, grad_points.numpy())
    return grad_points


def _arrays(*tensors):
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _levels(levels):
    return [np.array(values, dtype=np.int64) for values in levels]


def _unrolled(table):
    """A tuple of F zeros: numba compiles one kernel per length, with unrolled feature loops."""
    return (0,) * table.shape[1]


def _set_threads():
    """Use as many threads as PyTorch does."""
    num_threads = min(torch.get_num_threads(), MAX_THREADS)
    if numba.get_num_threads() != num_threads:
        numba.set_num_threads(num_threads)


@_compiled(inline="always")
def _clamp(x):
    """Clamp to [0, 1]; NaN becomes 0, since it must not become a table index."""
    x = x if x > ZERO else ZERO
    return x if x < ONE else ONE


@_compiled(inline="always")
def _axis(coordinate, resolution, is_dense):
    """The two nearest cell centres along an axis, and their weights.

    Beyond the outermost centres of a dense level there is nothing: such weights are 0.
    """
    position = _clamp(coordinate) * np.float32(resolution) - HALF
    low = np.int64(math.floor(position))
    high, weight_high = low + 1, position - np.float32(low)
    weight_low = ONE - weight_high
    if is_dense and low < 0:
        low, weight_low = 0, ZERO
    if is_dense and high == resolution:
        high, weight_high = resolution - 1, ZERO
    return low, high, weight_low, weight_high


@_compiled(inline="always")
def _cell(points, m, j, resolution, is_dense):
    """Centres and weights of a point along x, y and z: 12 numbers, as of `_axis`."""
    x0, x1, u0, u1 = _axis(points[m, j, 0], resolution, is_dense)
    y0, y1, v0, v1 = _axis(points[m, j, 1], resolution, is_dense)
    z0, z1, w0, w1 = _axis(points[m, j, 2], resolution, is_dense)
    return x0, x1, y0, y1, z0, z1, u0, u1, v0, v1, w0, w1


@_compiled(inline="always")
def _slopes(low, high):
    """Derivatives of the two weights of `_axis`; 0 where there is no centre (low equals high)."""
    is_border = low == high
    return (ZERO if is_border and low == 0 else -ONE), (ZERO if is_border and low > 0 else ONE)


@_compiled(inline="always")
def _table_indices(x0, x1, y0, y1, z0, z1, resolution, is_dense, offset, size):
    """Table indices of a cell's 8 corners, as in `hash_grid.table_index`; x varies fastest."""
    if is_dense:
        x0, x1 = offset + x0 * resolution * resolution, offset + x1 * resolution * resolution
        y0, y1 = y0 * resolution, y1 * resolution
        return (x0 + y0 + z0, x1 + y0 + z0, x0 + y1 + z0, x1 + y1 + z0,
                x0 + y0 + z1, x1 + y0 + z1, x0 + y1 + z1, x1 + y1 + z1)
    mask = size - 1
    y0, y1 = y0 * PRIME_Y, y1 * PRIME_Y
    z0, z1 = z0 * PRIME_Z, z1 * PRIME_Z
    return (offset + ((x0 ^ y0 ^ z0) & mask), offset + ((x1 ^ y0 ^ z0) & mask),
            offset + ((x0 ^ y1 ^ z0) & mask), offset + ((x1 ^ y1 ^ z0) & mask),
            offset + ((x0 ^ y0 ^ z1) & mask), offset + ((x1 ^ y0 ^ z1) & mask),
            offset + ((x0 ^ y1 ^ z1) & mask), offset + ((x1 ^ y1 ^ z1) & mask))


@_compiled(inline="always")
def _corner_weights(u0, u1, v0, v1, w0, w1, weight):
    """Trilinear weights of the 8 corners of a cell, times `weight`."""
    near, far = w0 * weight, w1 * weight
    a, b, c, d = u0 * v0, u1 * v0, u0 * v1, u1 * v1
    return a * near, b * near, c * near, d * near, a * far, b * far, c * far, d * far


@_compiled(parallel=True, fastmath={"contract"})
def _forward(points, weights, table, resolutions, offsets, sizes, unrolled, features):
    groups, members, width = points.shape[0], points.shape[1], len(unrolled)
    for block in numba.prange((groups + BLOCK - 1) // BLOCK):
        for level in range(len(sizes)):
            resolution, size = resolutions[level], sizes[level]
            is_dense = size == resolution * resolution * resolution
            for m in range(block * BLOCK, min((block + 1) * BLOCK, groups)):
                for j in range(members):
                    x0, x1, y0, y1, z0, z1, u0, u1, v0, v1, w0, w1 = _cell(
                        points, m, j, resolution, is_dense)
                    e = _table_indices(
                        x0, x1, y0, y1, z0, z1, resolution, is_dense, offsets[level], size)
                    s = _corner_weights(
                        u0, u1, v0, v1, w0, w1, weights[m, j, level] / np.float32(members))
                    for f in range(width):
                        # One expression: a sum in memory would be eight dependent loads and stores.
                        total = (s[0] * table[e[0], f] + s[1] * table[e[1], f]
                                 + s[2] * table[e[2], f] + s[3] * table[e[3], f]
                                 + s[4] * table[e[4], f] + s[5] * table[e[5], f]
                                 + s[6] * table[e[6], f] + s[7] * table[e[7], f])
                        before = ZERO if j == 0 else features[m, level * width + f]
                        features[m, level * width + f] = before + total


@_compiled(parallel=True, fastmath={"contract"})
def _table_gradient(gradient, points, weights, resolutions, offsets, sizes, unrolled, grad):
    groups, members, width = points.shape[0], points.shape[1], len(unrolled)
    # Each level belongs to one thread, so that no two threads add to one entry and the order of
    # additions is fixed.
    for level in numba.prange(len(sizes)):
        resolution, size = resolutions[level], sizes[level]
        is_dense = size == resolution * resolution * resolution
        for m in range(groups):
            for j in range(members):
                x0, x1, y0, y1, z0, z1, u0, u1, v0, v1, w0, w1 = _cell(
                    points, m, j, resolution, is_dense)
                e = _table_indices(
                    x0, x1, y0, y1, z0, z1, resolution, is_dense, offsets[level], size)
                s = _corner_weights(
                    u0, u1, v0, v1, w0, w1, weights[m, j, level] / np.float32(members))
                for corner in range(8):
                    for f in range(width):
                        grad[e[corner], f] += s[corner] * gradient[m, level * width + f]


@_compiled(parallel=True, fastmath={"contract"})
def _points_gradient(gradient, points, weights, table, resolutions, offsets, sizes, unrolled, grad):
    groups, members, width = points.shape[0], points.shape[1], len(unrolled)
    for m in numba.prange(groups):
        for j in range(members):
            du, dv, dw = ZERO, ZERO, ZERO
            for level in range(len(sizes)):
                resolution, size = resolutions[level], sizes[level]
                is_dense = size == resolution * resolution * resolution
                weight = weights[m, j, level] * np.float32(resolution) / np.float32(members)
                x0, x1, y0, y1, z0, z1, u0, u1, v0, v1, w0, w1 = _cell(
                    points, m, j, resolution, is_dense)
                du0, du1 = _slopes(x0, x1)
                dv0, dv1 = _slopes(y0, y1)
                dw0, dw1 = _slopes(z0, z1)
                entries = _table_indices(
                    x0, x1, y0, y1, z0, z1, resolution, is_dense, offsets[level], size)
                for corner in range(8):
                    a, b, c = corner & 1, corner >> 1 & 1, corner >> 2
                    product = ZERO
                    for f in range(width):
                        product += table[entries[corner], f] * gradient[m, level * width + f]
                    product *= weight
                    su, sv, sw = (u1 if a else u0), (v1 if b else v0), (w1 if c else w0)
                    du += product * (du1 if a else du0) * sv * sw
                    dv += product * (dv1 if b else dv0) * su * sw
                    dw += product * (dw1 if c else dw0) * su * sv
            grad[m, j, 0] = du if 0 <= points[m, j, 0] <= 1 else 0
            grad[m, j, 1] = dv if 0 <= points[m, j, 1] <= 1 else 0
            grad[m, j, 2] = dw if 0 <= points[m, j, 2] <= 1 else 0
