"""The kernel of `march.march`, compiled by numba when it is first called.

It computes what `march.march_torch` computes; tests compare the two. Samples of a tile of rays are
the lanes of vector instructions.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from fields.kernels_numba import unrolled
from fields.lanes_numba import (
    HALF,
    LANES,
    ONE,
    PER_ROUND,
    TILE,
    TWO,
    ZERO,
    add_product,
    compiled,
    corners_and_weights,
    cube_root,
    exp,
    fill,
    relu,
)
from runtime.compiled import run_on_threads

# The length of the opaque end of a ray, and the distance of nothing.
NEVER = np.float32(-1)

# -4 / pi * x^2 of `hash.downweights` for x = 1 / (sqrt(8) std).
FOOTPRINT = np.float32(-1 / (2 * math.pi))


class Scratch(NamedTuple):
    """Memory that one thread writes while it marches: per sample of a round, per ray of a tile.

    Arrays of samples are `[rows, LANES]`, or flat where constant offsets between rows let the
    compiler see that they do not overlap.

    points: in the unit cube; stds: of the footprint, in its units; lengths: of the interval, in the
    coordinates of rays, below 0 for the opaque end; starts, steps: of the interval, in t.
    """

    points: np.ndarray
    stds: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    owners: np.ndarray
    weights: np.ndarray
    shaded: np.ndarray
    corners: np.ndarray
    corner_weights: np.ndarray
    level_weights: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    spare: np.ndarray
    selected: np.ndarray
    live: np.ndarray
    now: np.ndarray
    is_ended: np.ndarray
    transmittance: np.ndarray
    shaded_weight: np.ndarray
    log_distance: np.ndarray
    median: np.ndarray
    colour: np.ndarray


@compiled()
def _encode(field, unrolled, scratch, count):
    """The features of the round's samples, and with `append_scale` the levels' weights."""
    table, width = field.table, len(unrolled)
    stride = width + (1 if field.append_scale else 0)
    e, s, w = scratch.corners, scratch.corner_weights, scratch.level_weights
    features = scratch.features
    for level in range(len(field.sizes)):
        resolution, size = field.resolutions[level], field.sizes[level]
        if field.downweight:
            for q in range(count):
                cells = scratch.stds[q] * np.float32(resolution)
                w[q] = math.sqrt(ONE - exp(FOOTPRINT / max(cells * cells, np.float32(1e-30))))
        else:
            for q in range(count):
                w[q] = ONE
        is_dense = size == resolution * resolution * resolution
        corners_and_weights(
            scratch.points, w, resolution, field.offsets[level], size, is_dense, e, s, count)
        row = level * stride
        for q in range(count):
            e0, e1, e2, e3 = e[q], e[LANES + q], e[2 * LANES + q], e[3 * LANES + q]
            e4, e5, e6, e7 = (
                e[4 * LANES + q], e[5 * LANES + q], e[6 * LANES + q], e[7 * LANES + q])
            s0, s1, s2, s3 = s[q], s[LANES + q], s[2 * LANES + q], s[3 * LANES + q]
            s4, s5, s6, s7 = (
                s[4 * LANES + q], s[5 * LANES + q], s[6 * LANES + q], s[7 * LANES + q])
            for f in range(width):
                features[row + f, q] = (
                    s0 * table[e0, f] + s1 * table[e1, f] + s2 * table[e2, f] + s3 * table[e3, f]
                    + s4 * table[e4, f] + s5 * table[e5, f] + s6 * table[e6, f]
                    + s7 * table[e7, f])
        if field.append_scale:
            for q in range(count):
                features[row + width, q] = w[q]


@compiled()
def _densities(field, unrolled, scratch, count):
    """Densities of the round's samples into `weights`; returns the trunk's output and a buffer."""
    _encode(field, unrolled, scratch, count)
    x, y, spare = scratch.features, scratch.hidden, scratch.spare
    for k in range(len(field.trunk)):
        rows, inputs, offset, bias = field.trunk[k]
        fill(field.params, bias, rows, y, count)
        add_product(field.params, offset, rows, inputs, x, y, count)
        relu(rows, y, count)
        x, y, spare = y, spare, y
    density = scratch.weights
    rows, _, offset, bias = field.density
    for q in range(count):
        density[q] = field.params[bias]
    for i in range(rows):
        for q in range(count):
            density[q] += field.params[offset + i] * x[i, q]
    for q in range(count):
        density[q] = exp(density[q])
    return x, y


# Samples along rays.


@compiled(forceinline=True)
def _contracted(x, y, z):
    """Length of a vector, at least 1, and the factor by which contraction scales it."""
    norm = math.sqrt(max(x * x + y * y + z * z, ONE))
    return norm, (TWO * norm - ONE) / (norm * norm)


@compiled(forceinline=True)
def _speed(norm, scale, along, squared):
    """Length in contracted space per t; along: x . d; squared: |d|^2. See `march.contracted_speed`.
    """
    radial = along * along / (norm * norm)
    inverse = ONE / (norm * norm)
    outside = math.sqrt(scale * scale * max(squared - radial, ZERO) + inverse * inverse * radial)
    return outside if norm > ONE else math.sqrt(squared)


@compiled(forceinline=True)
def _cell(u, resolution):
    return min(max(np.int64(u * np.float32(resolution)), 0), resolution - 1)


@compiled()
def _collect_ray(ray, r, n, rays, grid, options, scratch):
    """Add the next samples of a ray to a round, of which there are n so far; returns their number.
    """
    ox, oy, oz = rays.origins[ray, 0], rays.origins[ray, 1], rays.origins[ray, 2]
    dx, dy, dz = rays.directions[ray, 0], rays.directions[ray, 1], rays.directions[ray, 2]
    squared = dx * dx + dy * dy + dz * dz
    length, resolution = math.sqrt(squared), grid.skip.shape[0]
    cell = grid.side / np.float32(resolution)
    t, end, limit = scratch.now[r], rays.ends[ray], n + PER_ROUND
    longest = options.longest * (end - rays.starts[ray])
    speed, along, shrink = length, ZERO, ONE
    largest = max(max(abs(dx), abs(dy)), abs(dz))
    while n < limit and (t < end or options.is_opaque and scratch.is_ended[r] == 0):
        is_end = not t < end
        if grid.contraction:
            x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
            norm, scale = _contracted(x, y, z)
            speed = _speed(norm, scale, x * dx + y * dy + z * dz, squared)
        step = min(options.step * grid.side / speed, longest)
        if is_end:
            step = min(step, end - rays.starts[ray])
            t = end - step
        step = min(max(step, np.float32(1e-6) * abs(t)), end - t)
        middle = t + HALF * step
        x, y, z = ox + middle * dx, oy + middle * dy, oz + middle * dz
        if grid.contraction:
            norm, scale = _contracted(x, y, z)
            along = x * dx + y * dy + z * dz
            shrink = cube_root((scale / norm) * (scale / norm))
            x, y, z = scale * x, scale * y, scale * z
        u = (x - grid.centre[0]) / grid.side + HALF
        v = (y - grid.centre[1]) / grid.side + HALF
        w = (z - grid.centre[2]) / grid.side + HALF
        distance = grid.skip[_cell(u, resolution), _cell(v, resolution), _cell(w, resolution)]
        if distance == 0 or is_end:
            scratch.points[n], scratch.points[LANES + n], scratch.points[2 * LANES + n] = u, v, w
            radius = HALF * rays.radii[ray] * (middle if options.is_cone else ONE)
            scratch.stds[n] = radius * shrink / grid.side
            scratch.lengths[n] = NEVER if is_end else step * length
            scratch.starts[n], scratch.steps[n], scratch.owners[n] = t, step, r
            n += 1
        else:
            empty = cell * np.float32(distance - 1)
            if not grid.contraction:
                step = max(step, empty / largest)
            elif along >= ZERO or norm <= ONE:  # The speed never rises from here.
                step = max(step, empty / _speed(norm, scale, along, squared))
            else:
                nearest = max(norm - empty / scale, ONE)
                step = max(step, empty * nearest * nearest / ((TWO * nearest - ONE) * length))
        t += step
        if is_end:
            scratch.is_ended[r], t = 1, end
    scratch.now[r] = t
    return n


@compiled()
def _composite(scratch, count, options):
    """Densities to weights; updates rays, and returns the number of samples to be shaded."""
    weights, lengths, transmittance = scratch.weights, scratch.lengths, scratch.transmittance
    for q in range(count):
        opacity = ONE - exp(-weights[q] * lengths[q])
        weights[q] = opacity if lengths[q] >= ZERO else ONE
    found = 0
    for q in range(count):
        r = scratch.owners[q]
        before = transmittance[r]
        if before <= options.min_transmittance:  # The ray has ended within the round.
            continue
        weight = before * weights[q]
        transmittance[r] = before - weight
        if before > HALF and before - weight <= HALF:
            scratch.median[r] = scratch.starts[q] + scratch.steps[q] * (before - HALF) / weight
        if weight > options.min_weight:
            weights[found], scratch.shaded[found] = weight, q
            middle = scratch.starts[q] + HALF * scratch.steps[q]
            scratch.shaded_weight[r] += weight
            scratch.log_distance[r] += weight * math.log(max(middle, np.float32(1e-30)))
            found += 1
    return found


@compiled()
def _shade(first, field, directional, scratch, hidden, spare, found, padding):
    """Add the colours of the samples in `shaded` to their rays."""
    chosen, owners = scratch.shaded, scratch.owners
    for i in range(field.density[0]):
        for q in range(found):
            scratch.selected[i, q] = hidden[i, chosen[q]]
    x, y = hidden, spare
    for k in range(len(field.colour)):
        rows, inputs, offset, hidden_inputs, hidden_offset, bias, row = field.colour[k]
        if row < 0:
            fill(field.params, bias, rows, y, found)
        else:
            for o in range(rows):
                for q in range(found):
                    y[o, q] = directional[row + o, first + owners[chosen[q]]]
        if inputs:
            add_product(field.params, offset, rows, inputs, x, y, found)
        if hidden_inputs:
            add_product(
                field.params, hidden_offset, rows, hidden_inputs, scratch.selected, y, found)
        if k + 1 < len(field.colour):
            relu(rows, y, found)
        x, y = y, x
    for c in range(3):
        for q in range(found):
            x[c, q] = (ONE + TWO * padding) / (ONE + exp(-x[c, q])) - padding
        for q in range(found):
            scratch.colour[owners[chosen[q]], c] += scratch.weights[q] * x[c, q]


@compiled()
def _march_tile(first, rays, grid, field, unrolled, options, directional, scratch, out):
    """March the rays of a tile until each is opaque or at its end."""
    count = min(TILE, len(rays.starts) - first)
    for r in range(count):
        scratch.live[r], scratch.now[r] = r, rays.starts[first + r]
        scratch.is_ended[r], scratch.transmittance[r] = 0, ONE
        scratch.shaded_weight[r], scratch.log_distance[r], scratch.median[r] = ZERO, ZERO, NEVER
        scratch.colour[r, 0], scratch.colour[r, 1], scratch.colour[r, 2] = ZERO, ZERO, ZERO
    num_live = count
    while num_live > 0:
        n = 0
        for i in range(num_live):
            r = scratch.live[i]
            n = _collect_ray(first + r, r, n, rays, grid, options, scratch)
        if n > 0:
            hidden, spare = _densities(field, unrolled, scratch, n)
            found = _composite(scratch, n, options)
            if found > 0:
                _shade(first, field, directional, scratch, hidden, spare, found, options.padding)
        still_live = 0
        for i in range(num_live):
            r = scratch.live[i]
            may_end = options.is_opaque and scratch.is_ended[r] == 0
            if scratch.transmittance[r] > options.min_transmittance and (
                    scratch.now[r] < rays.ends[first + r] or may_end):
                scratch.live[still_live] = r
                still_live += 1
        num_live = still_live
    for r in range(count):
        ray, shaded = first + r, scratch.shaded_weight[r]
        is_opaque = scratch.transmittance[r] <= options.min_transmittance
        acc = ZERO if shaded == ZERO else ONE if is_opaque else ONE - scratch.transmittance[r]
        for c in range(3):
            mean = scratch.colour[r, c] / shaded if shaded > ZERO else ZERO
            out.rgb[ray, c] = acc * mean + (ONE - acc) * options.background
        out.acc[ray] = acc
        out.median[ray] = scratch.median[r]
        out.log_mean[ray] = scratch.log_distance[r] / shaded if shaded > ZERO else NEVER


@compiled()
def _make_scratch(num_features, width):
    def samples(rows):
        return np.zeros((rows, LANES), np.float32)

    def lanes(count):
        return np.zeros(count * LANES, np.float32)

    def rays():
        return np.zeros(TILE, np.float32)

    return Scratch(
        points=lanes(3), stds=lanes(1), lengths=lanes(1), starts=lanes(1), steps=lanes(1),
        owners=np.zeros(LANES, np.int32), weights=lanes(1), shaded=np.zeros(LANES, np.int32),
        corners=np.zeros(8 * LANES, np.uint32), corner_weights=lanes(8), level_weights=lanes(1),
        features=samples(num_features), hidden=samples(width), spare=samples(width),
        selected=samples(width), live=np.zeros(TILE, np.int32), now=rays(),
        is_ended=np.zeros(TILE, np.uint8), transmittance=rays(), shaded_weight=rays(),
        log_distance=rays(), median=rays(), colour=np.zeros((TILE, 3), np.float32))


@compiled()
def _march(first_part, last_part, parts, rays, grid, field, unrolled, options, directional, out):
    scratch = _make_scratch(field.num_features, field.width)
    num_tiles = (len(rays.starts) + TILE - 1) // TILE
    # Neighbouring tiles, which take about as long, go to different threads.
    for part in range(first_part, last_part):
        for tile in range(part, num_tiles, parts):
            _march_tile(
                tile * TILE, rays, grid, field, unrolled, options, directional, scratch, out)


@compiled()
def _density_at(first_point, last_point, points, stds, field, unrolled, density):
    scratch = _make_scratch(field.num_features, field.width)
    for first in range(first_point, last_point, LANES):
        count = min(LANES, last_point - first)
        for q in range(count):
            for axis in range(3):
                scratch.points[axis * LANES + q] = points[first + q, axis]
            scratch.stds[q] = stds[first + q]
        _densities(field, unrolled, scratch, count)
        for q in range(count):
            density[first + q] = scratch.weights[q]


def march(rays, grid, field, options, directional, out):
    """Write the march of all rays to `out`; the arguments are the records of march.py."""
    parts = torch.get_num_threads()
    run_on_threads(_march, parts, parts, rays, grid, field, unrolled(field.table), options,
                   directional, out)


def density_at(points, stds, field):
    """Densities `[M]` at points `[M, 3]` of the unit cube, for footprints of `stds [M]`."""
    density = np.empty(len(points), np.float32)
    run_on_threads(_density_at, len(points), points, stds, field, unrolled(field.table), density)
    return density
