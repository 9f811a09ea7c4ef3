"""Pieces of the march's kernel in which samples are the lanes of vector instructions.

Compiled by numba. Arrays of samples are `[rows, LANES]`, or flat where constant offsets between
rows let the compiler see that they do not overlap.
"""

import math

import numpy as np

from fields import simd
from runtime.compiled import compiled as compiled_by_numba

# Rays marched together, and the most samples that each adds in a round, before its transmittance is
# known: more would be wasted behind surfaces, fewer leave lanes idle.
TILE, PER_ROUND = 128, 4
LANES = TILE * PER_ROUND

# Constants of float32: with Python numbers numba would continue in 64 bits.
ZERO, HALF, ONE, TWO = (np.float32(x) for x in (0, 0.5, 1, 2))

# The hash's factors, as in `hash_grid.PRIMES`.
PRIME_Y, PRIME_Z = np.uint32(19349663), np.uint32(83492791)


def compiled(**options):
    """A decorator that compiles by numba for vectors.

    Divisions by 0 give infinities; sums may be reordered, always in the same way. A NaN stays one.
    """
    return compiled_by_numba(fastmath={"contract", "nsz", "reassoc", "arcp"}, error_model="numpy",
                             **options)


@compiled(forceinline=True)
def exp(x):
    """The exponential to 3e-7, in operations that fill vectors; its argument is clamped."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    k = np.int32(math.floor(x * np.float32(1.44269504) + HALF))
    r = x - np.float32(k) * np.float32(0.693359375) + np.float32(k) * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * np.int32((k + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(forceinline=True)
def cube_root(x):
    """The cube root of a normal float above 0, by Newton's method from a guess of its exponent."""
    y = np.int32(np.float32(x).view(np.int32) // np.int32(3) + np.int32(709921077)).view(np.float32)
    for _ in range(3):
        y = y - (y - x / (y * y)) * np.float32(1 / 3)
    return y


@compiled()
def add_product(params, offset, rows, inputs, x, y, count):
    """Add a matrix, `rows x inputs` from `offset` on, times x to y; rows: multiple of `simd.ROWS`.
    """
    matrix = params.ctypes.data + 4 * offset
    for column in range(0, count, simd.COLUMNS):
        for row in range(0, rows, simd.ROWS):
            simd.add_product(
                matrix + 4 * row * inputs, inputs, 1, x.ctypes.data + 4 * column, LANES,
                y.ctypes.data + 4 * (row * LANES + column), LANES, inputs)


@compiled()
def fill(params, offset, rows, y, count):
    """Set the rows of y to biases."""
    for o in range(rows):
        for q in range(count):
            y[o, q] = params[offset + o]


@compiled()
def relu(rows, y, count):
    for o in range(rows):
        for q in range(count):
            y[o, q] = max(y[o, q], ZERO)


# The grid.


@compiled(forceinline=True)
def _axis(coordinate, resolution, is_dense):
    """The two nearest cell centres along an axis, and their weights; see `hash_grid`."""
    position = min(max(coordinate, ZERO), ONE) * np.float32(resolution) - HALF
    low = np.int32(math.floor(position))
    high = np.int32(low + np.int32(1))
    upper = position - np.float32(low)
    lower = ONE - upper
    if is_dense:
        lower = lower if low >= 0 else ZERO
        upper = upper if high < resolution else ZERO
        low, high = max(low, np.int32(0)), min(high, np.int32(resolution - np.int32(1)))
    return np.uint32(low), np.uint32(high), lower, upper


@compiled()
def corners_and_weights(points, level_weights, resolution, offset, size, is_dense, corners,
                        weights, count):
    """Table indices and weights of the 8 corners around points; x varies fastest."""
    n, first, mask = np.int32(resolution), np.uint32(offset), np.uint32(size - 1)
    m, mm = np.uint32(resolution), np.uint32(resolution * resolution)
    for q in range(count):
        x0, x1, u0, u1 = _axis(points[q], n, is_dense)
        y0, y1, v0, v1 = _axis(points[LANES + q], n, is_dense)
        z0, z1, w0, w1 = _axis(points[2 * LANES + q], n, is_dense)
        w0, w1 = w0 * level_weights[q], w1 * level_weights[q]
        a, b, c, d = u0 * v0, u1 * v0, u0 * v1, u1 * v1
        weights[q], weights[LANES + q] = a * w0, b * w0
        weights[2 * LANES + q], weights[3 * LANES + q] = c * w0, d * w0
        weights[4 * LANES + q], weights[5 * LANES + q] = a * w1, b * w1
        weights[6 * LANES + q], weights[7 * LANES + q] = c * w1, d * w1
        if is_dense:
            x0, x1 = first + x0 * mm, first + x1 * mm
            y0, y1 = y0 * m, y1 * m
            corners[q], corners[LANES + q] = x0 + y0 + z0, x1 + y0 + z0
            corners[2 * LANES + q], corners[3 * LANES + q] = x0 + y1 + z0, x1 + y1 + z0
            corners[4 * LANES + q], corners[5 * LANES + q] = x0 + y0 + z1, x1 + y0 + z1
            corners[6 * LANES + q], corners[7 * LANES + q] = x0 + y1 + z1, x1 + y1 + z1
        else:
            y0, y1, z0, z1 = y0 * PRIME_Y, y1 * PRIME_Y, z0 * PRIME_Z, z1 * PRIME_Z
            e, f, g, h = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
            corners[q] = first + ((x0 ^ e) & mask)
            corners[LANES + q] = first + ((x1 ^ e) & mask)
            corners[2 * LANES + q] = first + ((x0 ^ f) & mask)
            corners[3 * LANES + q] = first + ((x1 ^ f) & mask)
            corners[4 * LANES + q] = first + ((x0 ^ g) & mask)
            corners[5 * LANES + q] = first + ((x1 ^ g) & mask)
            corners[6 * LANES + q] = first + ((x0 ^ h) & mask)
            corners[7 * LANES + q] = first + ((x1 ^ h) & mask)
