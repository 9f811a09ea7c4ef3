"""Meshes: the isosurface of a density, found without evaluating the density everywhere.

Points are `[..., 3]` float64 NumPy arrays in the coordinates of a box; a mesh is `vertices [V, 3]`
and `faces [F, 3]`, counter-clockwise seen from outside.
"""

from typing import NamedTuple

import mcubes
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Cells along a block's side. The surface is followed from block to block.
BLOCK = 4

# Points of triangles that are drawn at once.
DRAWN_AT_ONCE = 1 << 20


class Grid(NamedTuple):
    """A lattice of `shape` points with cubic cells of side `step`, from the corner `low [3]`."""

    low: np.ndarray
    step: float
    shape: tuple

    def points(self, index):
        """Points `[..., 3]` of lattice coordinates `[..., 3]`."""
        return self.low + self.step * np.asarray(index)


class Isosurface(NamedTuple):
    """A mesh, the range (smallest, largest) of the densities met, and how many were evaluated."""

    vertices: np.ndarray
    faces: np.ndarray
    density_range: tuple
    num_evaluated: int


def make_grid(low, high, grid_size):
    """The `Grid` of a box with `grid_size` points along its longest side."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    step = float((high - low).max()) / (grid_size - 1)
    shape = np.maximum(np.ceil((high - low) / step - 1e-6) + 1, 2)
    return Grid(low, step, tuple(int(n) for n in shape))


def isosurface(density, grid, threshold, seeds, visible=None):
    """The surface where `density` crosses `threshold`, as an `Isosurface`.

    density: a function of points `[M, 3]` that gives `[M]`; no point is asked for twice. seeds:
    points `[K, 3]` near the surface. visible: a function of points `[M, 3]` and a distance that
    tells `[M]` whether anything that near is wanted; None wants all.
    Blocks of the grid that hold seeds, or whose corners show a crossing, are evaluated, then the
    neighbours into which the surface goes on, and so forth: every wanted piece that a seed or a
    corner meets is found whole.
    """
    values = np.full(grid.shape, np.nan, dtype=np.float32)
    blocks = np.array([-(-(n - 1) // BLOCK) for n in grid.shape])
    done = np.zeros(blocks, dtype=bool)
    wave = np.concatenate([_crossed_at_corners(density, grid, threshold, values, blocks),
                           _blocks_of(seeds, grid, blocks)])
    while len(wave):
        wave = np.unique(wave, axis=0)
        wave = wave[~done[tuple(wave.T)]]
        done[tuple(wave.T)] = True
        if visible is not None:
            centres = grid.points((wave + 0.5) * BLOCK)
            wave = wave[visible(centres, 0.5 * 3**0.5 * BLOCK * grid.step)]
        _evaluate(density, grid, values, _points_of(wave, grid.shape).reshape(-1, 3))
        wave = _neighbours(wave, values, threshold, blocks)
    known = np.isfinite(values)
    met = values[known]
    # What was not evaluated counts as empty; where that makes a surface, it is taken away again.
    vertices, faces = mcubes.marching_cubes(np.where(known, values, np.float32(0)), threshold)
    ends = np.floor(vertices).astype(int), np.ceil(vertices).astype(int)
    real = known[tuple(ends[0].T)] & known[tuple(ends[1].T)]
    faces, used = select_faces(faces, real[faces].all(axis=1))
    density_range = float(met.min()), float(met.max())
    return Isosurface(grid.points(vertices[used]), faces, density_range, len(met))


def _crossed_at_corners(density, grid, threshold, values, blocks):
    """Blocks `[K, 3]` some but not all of whose corners are above the threshold."""
    axes = [np.minimum(np.arange(b + 1) * BLOCK, n - 1)
            for b, n in zip(blocks, grid.shape, strict=True)]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    _evaluate(density, grid, values, corners.reshape(-1, 3))
    above = values[np.ix_(*axes)] > threshold
    around = np.stack([above[tuple(slice(a, a + b) for a, b in zip(corner, blocks, strict=True))]
                       for corner in np.ndindex(2, 2, 2)])
    return np.argwhere(around.any(axis=0) & ~around.all(axis=0))


def _blocks_of(points, grid, blocks):
    """Blocks `[K, 3]` that hold points; those outside the grid are left out."""
    index = np.floor((np.asarray(points).reshape(-1, 3) - grid.low) / grid.step).astype(int)
    inside = ((index >= 0) & (index < np.array(grid.shape) - 1)).all(axis=1)
    return np.minimum(index[inside] // BLOCK, blocks - 1)


def _points_of(wave, shape):
    """The lattice points `[K, B, B, B, 3]` of blocks; the last of the grid may repeat some."""
    within = np.stack(np.meshgrid(*[np.arange(BLOCK + 1)] * 3, indexing="ij"), axis=-1)
    return np.minimum(wave[:, None, None, None] * BLOCK + within, np.array(shape) - 1)


def _evaluate(density, grid, values, index):
    """Fill in `values` at lattice points `[M, 3]` that have none yet."""
    flat = np.unique(np.ravel_multi_index(tuple(index.T), values.shape))
    flat = flat[np.isnan(values.reshape(-1)[flat])]
    points = grid.points(np.stack(np.unravel_index(flat, values.shape), axis=-1))
    values.reshape(-1)[flat] = density(points)


def _neighbours(wave, values, threshold, blocks):
    """Blocks `[K, 3]` that share with one of `wave` a face which the surface crosses."""
    above = values[tuple(np.moveaxis(_points_of(wave, values.shape), -1, 0))] > threshold
    found = []
    for axis in range(3):
        for end, step in ((0, -1), (-1, 1)):
            face = above.take(end, axis=axis + 1)
            crossed = face.any(axis=(1, 2)) & ~face.all(axis=(1, 2))
            found.append(wave[crossed] + step * np.eye(3, dtype=int)[axis])
    found = np.concatenate(found)
    return found[((found >= 0) & (found < blocks)).all(axis=1)]


def select_faces(faces, keep):
    """The chosen faces, numbered anew, and the old numbers of the vertices that they use."""
    used, renumbered = np.unique(faces[keep], return_inverse=True)
    return renumbered.reshape(-1, 3), used


def pieces(num_vertices, faces):
    """The number `[F]` of the connected piece to which each face belongs, from 0 on."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    shape = num_vertices, num_vertices
    links = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=shape)
    _, of_vertex = connected_components(links, directed=False)
    return np.unique(of_vertex[faces[:, 0]], return_inverse=True)[1]


def draw_mesh(pixels, depths, faces, values, width, height):
    """What a camera sees of a mesh: `[height, width, C]`, 1 where there is nothing.

    pixels: `[V, 2]` and depths `[V]` of the vertices; values: `[V, C]`, such as colours. Triangles
    are filled with points less than a pixel apart; of those in one pixel the nearest is seen.
    """
    picture = np.ones((height * width, values.shape[1]), dtype=np.float32)
    nearest = np.full(height * width, np.inf, dtype=np.float32)
    corners = pixels[faces]
    low, high = corners.min(axis=1), corners.max(axis=1)
    seen = (high >= 0).all(axis=1) & (low < [width, height]).all(axis=1)
    seen &= (depths[faces] > 0).all(axis=1)
    faces, corners = faces[seen], corners[seen]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1, initial=0)
    steps = np.clip(np.ceil(1.5 * longest), 1, 4 * max(width, height)).astype(int)
    of_vertex = np.concatenate([pixels, depths[:, None], values], axis=1).astype(np.float32)
    for n in np.unique(steps):
        a, b = np.mgrid[0 : n + 1, 0 : n + 1].reshape(2, -1) / n
        shares = np.stack([a, b, 1 - a - b], axis=1)[a + b <= 1 + 1e-9].astype(np.float32)
        alike = faces[steps == n]
        for part in np.array_split(alike, -(-len(alike) * len(shares) // DRAWN_AT_ONCE)):
            points = np.einsum("pk,fkc->fpc", shares, of_vertex[part])
            _draw_points(points.reshape(-1, of_vertex.shape[1]), picture, nearest, width, height)
    return picture.reshape(height, width, -1)


def _draw_points(points, picture, nearest, width, height):
    """Put points (x, y, depth, values) into a flat picture where none is nearer yet."""
    column, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    points, place = points[inside], (row * width + column)[inside]
    before = points[:, 2] < nearest[place]
    points, place = points[before], place[before]
    # Of several values for one pixel the last stays, which is the nearest.
    order = np.argsort(-points[:, 2])
    nearest[place[order]] = points[order, 2]
    picture[place[order]] = points[order, 3:]
