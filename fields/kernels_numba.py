"""The hash encoding's CPU kernels, compiled by numba when they are first called.

They compute what `hash_grid.encode_torch` computes; tests compare the two. Tensors go in and come
out; inside they are NumPy arrays that share memory with them.

Each kernel treats a block of points level by level: one loop, which the compiler vectorises, finds
table indices and weights of all corners, and a second one reads the table.
"""

import numpy as np
import torch

from runtime.compiled import compiled, run_on_threads

# Points that one thread processes at once: indices and weights of their corners stay in its cache.
BLOCK = 256

# Rows of a block's scratch memory, an array `[SCRATCH_ROWS, BLOCK]` of float32. It is one array
# because several would need checks for overlap, which keep the compiler from vectorising. First are
# 8 rows of table indices (uint32), then 8 of corner weights.
POINT, WEIGHT, SLOPE, SCRATCH_ROWS = 16, 19, 20, 23

# Constants of 32 bits: with Python integers numba would continue in 64 bits.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
INT_ZERO, INT_ONE = np.int32(0), np.int32(1)

# The hash's factors, as in `hash_grid.PRIMES`.
PRIME_Y, PRIME_Z = np.uint32(19349663), np.uint32(83492791)


def forward(points, weights, table, levels):
    """Features `[M, L * F]`; see `hash_grid.encode`."""
    features = torch.empty(len(points), len(levels.num_entries) * table.shape[1])
    shape = *_levels(levels), unrolled(table)
    run_on_threads(_forward, len(features), *_arrays(
        points.flatten(0, 1), weights.flatten(0, 1), table), *shape, features.numpy())
    return features


def table_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the table, `[entries, F]`; arguments as in `points_gradient`."""
    grad_table = torch.zeros_like(table)
    shape = *_levels(levels), unrolled(table)
    num_threads = torch.get_num_threads()
    _, gradient, points, weights = _without_zeros(gradient, points, weights)
    run_on_threads(_table_gradient, num_threads, *_arrays(
        gradient, points.flatten(0, 1), weights.flatten(0, 1)), *shape, num_threads,
        grad_table.numpy())
    return grad_table


def points_gradient(gradient, points, weights, table, levels):
    """Gradient of the loss by the points, `[M, J, 3]`.

    gradient: gradient by the features, `[M, L * F]`; other arguments: as in `forward`.
    """
    grad_points = torch.zeros_like(points, memory_format=torch.contiguous_format)
    shape = *_levels(levels), unrolled(table)
    rows, gradient, points, weights = _without_zeros(gradient, points, weights)
    found = torch.empty(points.shape)
    run_on_threads(_points_gradient, points.shape[0] * points.shape[1], *_arrays(
        gradient, points.flatten(0, 1), weights.flatten(0, 1), table), *shape,
        found.flatten(0, 1).numpy())
    if rows is None:
        return found
    grad_points[rows] = found
    return grad_points


def _without_zeros(gradient, *others):
    """Numbers of the rows where the gradient is not all zero, and these rows of all arguments.

    The numbers are None, and the arguments unchanged, if there are no zeros.
    """
    rows = torch.from_numpy(_find_rows(*_arrays(gradient)))
    if len(rows) == len(gradient):
        return None, gradient, *others
    return rows, *(values[rows] for values in (gradient, *others))


def _arrays(*tensors):
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _levels(levels):
    return [np.array(values, dtype=np.int64) for values in levels]


def unrolled(table):
    """A tuple of F zeros: numba compiles one kernel per length, with unrolled feature loops."""
    return (0,) * table.shape[1]


@compiled(forceinline=True)
def _clamp(x):
    """Clamp to [0, 1]; NaN becomes 0, since it must not become a table index."""
    x = x if x > ZERO else ZERO
    return x if x < ONE else ONE


@compiled(forceinline=True)
def _axis(coordinate, resolution, is_dense):
    """The two nearest cell centres along an axis as uint32, and their weights.

    Beyond the outermost centres of a dense level there is nothing: such weights are 0.
    """
    position = _clamp(coordinate) * np.float32(resolution) - HALF
    low = np.int32(np.int32(position) - (INT_ONE if position < ZERO else INT_ZERO))
    high = np.int32(low + INT_ONE)
    weight_high = position - np.float32(low)
    weight_low = ONE - weight_high
    if is_dense:
        last = np.int32(resolution - 1)
        weight_low = ZERO if low < INT_ZERO else weight_low
        weight_high = ZERO if high > last else weight_high
        low = INT_ZERO if low < INT_ZERO else low
        high = last if high > last else high
    return np.uint32(low), np.uint32(high), weight_low, weight_high


@compiled(forceinline=True)
def _dense_corners(x0, x1, y0, y1, z0, z1, resolution, offset):
    """Table indices of a cell's 8 corners on a dense level; x varies fastest."""
    side, first = np.uint32(resolution), np.uint32(offset)
    x0 = np.uint32(np.uint32(np.uint32(x0 * side) * side) + first)
    x1 = np.uint32(np.uint32(np.uint32(x1 * side) * side) + first)
    y0, y1 = np.uint32(y0 * side), np.uint32(y1 * side)
    a, b, c, d = np.uint32(y0 + z0), np.uint32(y1 + z0), np.uint32(y0 + z1), np.uint32(y1 + z1)
    return (np.uint32(x0 + a), np.uint32(x1 + a), np.uint32(x0 + b), np.uint32(x1 + b),
            np.uint32(x0 + c), np.uint32(x1 + c), np.uint32(x0 + d), np.uint32(x1 + d))


@compiled(forceinline=True)
def _hashed_corners(x0, x1, y0, y1, z0, z1, offset, size):
    """Table indices of a cell's 8 corners on a hashed level, as in `hash_grid.table_index`."""
    mask, first = np.uint32(size - 1), np.uint32(offset)
    y0, y1 = np.uint32(y0 * PRIME_Y), np.uint32(y1 * PRIME_Y)
    z0, z1 = np.uint32(z0 * PRIME_Z), np.uint32(z1 * PRIME_Z)
    a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
    return (np.uint32(first + ((x0 ^ a) & mask)), np.uint32(first + ((x1 ^ a) & mask)),
            np.uint32(first + ((x0 ^ b) & mask)), np.uint32(first + ((x1 ^ b) & mask)),
            np.uint32(first + ((x0 ^ c) & mask)), np.uint32(first + ((x1 ^ c) & mask)),
            np.uint32(first + ((x0 ^ d) & mask)), np.uint32(first + ((x1 ^ d) & mask)))


@compiled()
def _find_rows(values):
    """Numbers of the rows of `[M, N]` that are not all zero."""
    rows, count = np.empty(len(values), np.int64), 0
    for m in range(len(values)):
        rows[count] = m
        for i in range(values.shape[1]):
            if values[m, i] != ZERO:  # NaN is not zero.
                count += 1
                break
    return rows[:count]


@compiled(forceinline=True)
def load_points(points, first, count, scratch):
    """Copy `count` points of `[N, 3]`, the first of which is `first`, to the scratch memory."""
    for q in range(count):
        m, k = np.uintp(first + q), np.uintp(q)
        scratch[POINT, k] = points[m, 0]
        scratch[POINT + 1, k] = points[m, 1]
        scratch[POINT + 2, k] = points[m, 2]


@compiled(forceinline=True)
def load_weights(weights, first, count, level, members, scratch):
    """Copy a level's weights of `[N, L]`, divided by the number of multisamples, likewise."""
    for q in range(count):
        scratch[WEIGHT, np.uintp(q)] = (
            weights[np.uintp(first + q), np.uintp(level)] / np.float32(members))


@compiled(forceinline=True)
def find_corners(scratch, entries, count, resolution, offset, size):
    """Table indices and trilinear weights of the 8 corners about each loaded point, on one level.

    scratch: float32 `[SCRATCH_ROWS, BLOCK]`, after `load_points` and `load_weights`; entries: the
    same memory as uint32. Row c of `entries` becomes the table indices of corner c, row 8 + c of
    `scratch` its weights; x varies fastest. resolution, offset, size: as in `Levels`.
    """
    is_dense = size == resolution * resolution * resolution
    for q in range(count):
        k = np.uintp(q)
        x0, x1, u0, u1 = _axis(scratch[POINT, k], resolution, is_dense)
        y0, y1, v0, v1 = _axis(scratch[POINT + 1, k], resolution, is_dense)
        z0, z1, w0, w1 = _axis(scratch[POINT + 2, k], resolution, is_dense)
        if is_dense:
            e = _dense_corners(x0, x1, y0, y1, z0, z1, resolution, offset)
        else:
            e = _hashed_corners(x0, x1, y0, y1, z0, z1, offset, size)
        entries[0, k], entries[1, k], entries[2, k], entries[3, k] = e[0], e[1], e[2], e[3]
        entries[4, k], entries[5, k], entries[6, k], entries[7, k] = e[4], e[5], e[6], e[7]
        near, far = w0 * scratch[WEIGHT, k], w1 * scratch[WEIGHT, k]
        a, b, c, d = u0 * v0, u1 * v0, u0 * v1, u1 * v1
        scratch[8, k], scratch[9, k] = a * near, b * near
        scratch[10, k], scratch[11, k] = c * near, d * near
        scratch[12, k], scratch[13, k] = a * far, b * far
        scratch[14, k], scratch[15, k] = c * far, d * far


@compiled(forceinline=True)
def _corner_entries(entries, k):
    """The 8 table indices of a block's k-th point; unsigned, so that none is taken as negative."""
    return (np.uintp(entries[0, k]), np.uintp(entries[1, k]), np.uintp(entries[2, k]),
            np.uintp(entries[3, k]), np.uintp(entries[4, k]), np.uintp(entries[5, k]),
            np.uintp(entries[6, k]), np.uintp(entries[7, k]))


@compiled(fastmath={"contract"})
def _forward(first_row, last_row, points, weights, table, resolutions, offsets, sizes, unrolled,
             features):
    width, members = len(unrolled), len(points) // max(len(features), 1)
    rows = max(BLOCK // max(members, 1), 1)
    scratch = np.empty((SCRATCH_ROWS, BLOCK), np.float32)
    entries = scratch.view(np.uint32)
    for row in range(first_row, last_row, rows):
        end = min(row + rows, last_row) * members
        for first in range(row * members, end, BLOCK):
            count = min(BLOCK, end - first)
            load_points(points, first, count, scratch)
            for level in range(len(sizes)):
                load_weights(weights, first, count, level, members, scratch)
                find_corners(scratch, entries, count, resolutions[level], offsets[level],
                             sizes[level])
                for q in range(count):
                    k = np.uintp(q)
                    m = first + q if members == 1 else (first + q) // members
                    e0, e1, e2, e3, e4, e5, e6, e7 = _corner_entries(entries, k)
                    is_first = m * members == first + q
                    for f in range(width):
                        # One expression: a sum in memory would be eight dependent loads and stores.
                        total = (scratch[8, k] * table[e0, f] + scratch[9, k] * table[e1, f]
                                 + scratch[10, k] * table[e2, f] + scratch[11, k] * table[e3, f]
                                 + scratch[12, k] * table[e4, f] + scratch[13, k] * table[e5, f]
                                 + scratch[14, k] * table[e6, f] + scratch[15, k] * table[e7, f])
                        before = ZERO if is_first else features[m, level * width + f]
                        features[m, level * width + f] = before + total


@compiled(fastmath={"contract"})
def _add_level(gradient, points, weights, level, resolution, offset, size, unrolled, grad):
    """Add the gradient by the entries of one level to `grad`."""
    width, members = len(unrolled), len(points) // max(len(gradient), 1)
    scratch = np.empty((SCRATCH_ROWS, BLOCK), np.float32)
    entries = scratch.view(np.uint32)
    for first in range(0, len(points), BLOCK):
        count = min(BLOCK, len(points) - first)
        load_points(points, first, count, scratch)
        load_weights(weights, first, count, level, members, scratch)
        find_corners(scratch, entries, count, resolution, offset, size)
        for q in range(count):
            k = np.uintp(q)
            m = first + q if members == 1 else (first + q) // members
            for corner in range(8):
                e, weight = np.uintp(entries[corner, k]), scratch[8 + corner, k]
                for f in range(width):
                    grad[e, f] += weight * gradient[m, level * width + f]


@compiled()
def _table_gradient(first_thread, last_thread, gradient, points, weights, resolutions, offsets,
                    sizes, unrolled, num_threads, grad):
    # Each level belongs to one thread, so that no two threads add to one entry and the order of
    # additions is fixed. Fine levels take longer; levels are dealt out from them, back and forth.
    for thread in range(first_thread, last_thread):
        for turn in range((len(sizes) + num_threads - 1) // num_threads):
            place = thread if turn % 2 == 0 else num_threads - 1 - thread
            level = len(sizes) - 1 - turn * num_threads - place
            if level >= 0:
                _add_level(gradient, points, weights, level, resolutions[level], offsets[level],
                           sizes[level], unrolled, grad)


@compiled(forceinline=True)
def _slopes(coordinate, resolution, is_dense):
    """The two weights of `_axis` and their derivatives; 0 where there is no centre."""
    _, _, weight_low, weight_high = _axis(coordinate, resolution, is_dense)
    position = _clamp(coordinate) * np.float32(resolution) - HALF
    slope_low = ZERO if is_dense and position < ZERO else -ONE
    slope_high = ZERO if is_dense and position >= np.float32(resolution - 1) else ONE
    return weight_low, weight_high, slope_low, slope_high


@compiled(forceinline=True)
def _add_slopes(scratch, count, resolution, size):
    """Add a level's derivatives by the points to the scratch memory.

    Rows 8 to 15 hold the products of the features' gradient and the corners' entries.
    """
    is_dense = size == resolution * resolution * resolution
    for q in range(count):
        k = np.uintp(q)
        u0, u1, du0, du1 = _slopes(scratch[POINT, k], resolution, is_dense)
        v0, v1, dv0, dv1 = _slopes(scratch[POINT + 1, k], resolution, is_dense)
        w0, w1, dw0, dw1 = _slopes(scratch[POINT + 2, k], resolution, is_dense)
        weight = scratch[WEIGHT, k] * np.float32(resolution)
        p0, p1, p2, p3 = scratch[8, k], scratch[9, k], scratch[10, k], scratch[11, k]
        p4, p5, p6, p7 = scratch[12, k], scratch[13, k], scratch[14, k], scratch[15, k]
        # Interpolate along x and y, then along the remaining axes.
        near_low, near_high = u0 * p0 + u1 * p1, u0 * p2 + u1 * p3
        far_low, far_high = u0 * p4 + u1 * p5, u0 * p6 + u1 * p7
        scratch[SLOPE, k] += weight * (
            w0 * (v0 * (du0 * p0 + du1 * p1) + v1 * (du0 * p2 + du1 * p3))
            + w1 * (v0 * (du0 * p4 + du1 * p5) + v1 * (du0 * p6 + du1 * p7)))
        scratch[SLOPE + 1, k] += weight * (w0 * (dv0 * near_low + dv1 * near_high)
                                           + w1 * (dv0 * far_low + dv1 * far_high))
        scratch[SLOPE + 2, k] += weight * (dw0 * (v0 * near_low + v1 * near_high)
                                           + dw1 * (v0 * far_low + v1 * far_high))


@compiled(fastmath={"contract"})
def _points_gradient(first_point, last_point, gradient, points, weights, table, resolutions,
                     offsets, sizes, unrolled, grad):
    width, members = len(unrolled), len(points) // max(len(gradient), 1)
    scratch = np.empty((SCRATCH_ROWS, BLOCK), np.float32)
    entries = scratch.view(np.uint32)
    for first in range(first_point, last_point, BLOCK):
        count = min(BLOCK, last_point - first)
        load_points(points, first, count, scratch)
        scratch[SLOPE:SLOPE + 3] = ZERO
        for level in range(len(sizes)):
            load_weights(weights, first, count, level, members, scratch)
            find_corners(scratch, entries, count, resolutions[level], offsets[level], sizes[level])
            for q in range(count):
                k = np.uintp(q)
                m = first + q if members == 1 else (first + q) // members
                for corner in range(8):
                    e, product = np.uintp(entries[corner, k]), ZERO
                    for f in range(width):
                        product += table[e, f] * gradient[m, level * width + f]
                    scratch[8 + corner, k] = product
            _add_slopes(scratch, count, resolutions[level], sizes[level])
        for q in range(count):
            m, k = np.uintp(first + q), np.uintp(q)
            for axis in range(3):
                is_inside = ZERO <= scratch[POINT + axis, k] <= ONE
                grad[m, axis] = scratch[SLOPE + axis, k] if is_inside else ZERO
