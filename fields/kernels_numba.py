"""The hash encoding's CPU kernels, compiled by numba when they are first called.

They compute what `hash_grid.encode_torch` computes; tests compare the two. Tensors go in and come
out; inside they are NumPy arrays that share memory with them.
"""

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
ZERO, ONE = np.float32(0), np.float32(1)


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
def _cell(points, m, j, resolution):
    """The cell of a point and the position inside it: x, y, z of each."""
    x = _clamp(points[m, j, 0]) * np.float32(resolution)
    y = _clamp(points[m, j, 1]) * np.float32(resolution)
    z = _clamp(points[m, j, 2]) * np.float32(resolution)
    i = min(np.int64(x), resolution - 1)
    k = min(np.int64(y), resolution - 1)
    n = min(np.int64(z), resolution - 1)
    return i, k, n, x - np.float32(i), y - np.float32(k), z - np.float32(n)


@_compiled(inline="always")
def _table_indices(x, y, z, side, offset, size):
    """Table indices of a cell's 8 corners, as in `hash_grid.table_index`."""
    if size == side * side * side:
        e = offset + x + side * (y + side * z)
        up, back = side, side * side
        return (e, e + 1, e + up, e + up + 1,
                e + back, e + back + 1, e + back + up, e + back + up + 1)
    mask = size - 1
    y0, y1 = y * 2654435761, (y + 1) * 2654435761
    z0, z1 = z * 805459861, (z + 1) * 805459861
    return (offset + ((x ^ y0 ^ z0) & mask), offset + (((x + 1) ^ y0 ^ z0) & mask),
            offset + ((x ^ y1 ^ z0) & mask), offset + (((x + 1) ^ y1 ^ z0) & mask),
            offset + ((x ^ y0 ^ z1) & mask), offset + (((x + 1) ^ y0 ^ z1) & mask),
            offset + ((x ^ y1 ^ z1) & mask), offset + (((x + 1) ^ y1 ^ z1) & mask))


@_compiled(inline="always")
def _corner_weights(u, v, w, weight):
    """Trilinear weights of the 8 corners of a cell, times `weight`."""
    near, far = (ONE - w) * weight, w * weight
    a, b, c, d = (ONE - u) * (ONE - v), u * (ONE - v), (ONE - u) * v, u * v
    return a * near, b * near, c * near, d * near, a * far, b * far, c * far, d * far


@_compiled(parallel=True, fastmath={"contract"})
def _forward(points, weights, table, resolutions, offsets, sizes, unrolled, features):
    groups, members, width = points.shape[0], points.shape[1], len(unrolled)
    for block in numba.prange((groups + BLOCK - 1) // BLOCK):
        for level in range(len(sizes)):
            resolution, side = resolutions[level], resolutions[level] + 1
            for m in range(block * BLOCK, min((block + 1) * BLOCK, groups)):
                for j in range(members):
                    x, y, z, u, v, w = _cell(points, m, j, resolution)
                    e = _table_indices(x, y, z, side, offsets[level], sizes[level])
                    s = _corner_weights(u, v, w, weights[m, j, level] / np.float32(members))
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
        resolution, side = resolutions[level], resolutions[level] + 1
        for m in range(groups):
            for j in range(members):
                x, y, z, u, v, w = _cell(points, m, j, resolution)
                e = _table_indices(x, y, z, side, offsets[level], sizes[level])
                s = _corner_weights(u, v, w, weights[m, j, level] / np.float32(members))
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
                resolution, side = resolutions[level], resolutions[level] + 1
                x, y, z, u, v, w = _cell(points, m, j, resolution)
                weight = weights[m, j, level] * np.float32(resolution) / np.float32(members)
                entries = _table_indices(x, y, z, side, offsets[level], sizes[level])
                for corner in range(8):
                    a, b, c = corner & 1, corner >> 1 & 1, corner >> 2
                    product = ZERO
                    for f in range(width):
                        product += table[entries[corner], f] * gradient[m, level * width + f]
                    product *= weight
                    su, sv, sw = (u if a else ONE - u), (v if b else ONE - v), (w if c else ONE - w)
                    du += (product if a else -product) * sv * sw
                    dv += (product if b else -product) * su * sw
                    dw += (product if c else -product) * su * sv
            grad[m, j, 0] = du if 0 <= points[m, j, 0] <= 1 else 0
            grad[m, j, 1] = dv if 0 <= points[m, j, 1] <= 1 else 0
            grad[m, j, 2] = dw if 0 <= points[m, j, 2] <= 1 else 0
