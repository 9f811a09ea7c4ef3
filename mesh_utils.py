"""Meshes: the isosurface of a density, found without evaluating the density everywhere.

Points are `[..., 3]` float64 NumPy arrays in the coordinates of a box; a mesh is `vertices [V, 3]`
and `faces [F, 3]`, counter-clockwise seen from outside.
"""

from typing import NamedTuple

import numpy as np

# Cells along a block's side. The surface is followed from block to block.
BLOCK = 4


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
    return Grid(low, step, tuple(int(n) for n in np.ceil((high - low) / step - 1e-6) + 1))


def isosurface(density, grid, threshold, seeds, visible=None):
    """The surface where `density` crosses `threshold`, as an `Isosurface`.

    density: a function of points `[M, 3]` that gives `[M]`; no point is asked for twice. seeds:
    points `[K, 3]` near the surface. visible: a function of points `[M, 3]` and a distance that
    tells `[M]` whether anything that near is wanted; None wants all.
    Blocks of the grid that hold seeds, or whose corners show a crossing, are evaluated, then the
    neighbours into which the surface goes on, and so forth: every wanted piece that a seed or a
    corner meets is found whole.
    """
    import mcubes

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
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    shape = num_vertices, num_vertices
    links = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=shape)
    _, of_vertex = connected_components(links, directed=False)
    return np.unique(of_vertex[faces[:, 0]], return_inverse=True)[1]


# Looking at a mesh.


def draw_mesh(pixels, depths, faces, colours, width, height):
    """A picture `[height, width, 3]` of a mesh on white, the nearest surface in front.

    pixels: `[V, 2]` and depths `[V]` of the vertices; colours: `[V, 3]` in [0, 1]. Triangles are
    filled with points less than a pixel apart.
    """
    picture = np.ones((height, width, 3), dtype=np.float32)
    inside = (pixels > -width) & (pixels < 2 * max(width, height))
    seen = (inside.all(axis=1) & (depths > 0))[faces].all(axis=1)
    faces = faces[seen]
    corners = pixels[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1, initial=0)
    steps = np.clip(np.ceil(1.5 * longest), 1, 64).astype(int)
    values = np.concatenate([pixels, depths[:, None], colours], axis=1)
    points = [np.empty((0, 6))]
    for n in np.unique(steps):
        a, b = np.mgrid[0 : n + 1, 0 : n + 1].reshape(2, -1) / n
        inner = a + b <= 1 + 1e-9
        shares = np.stack([a, b, 1 - a - b], axis=1)[inner]
        points.append(np.einsum("pk,fkc->fpc", shares, values[faces[steps == n]]).reshape(-1, 6))
    points = np.concatenate(points)
    column, row = np.floor(points[:, :2]).astype(int).T
    shown = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    points, column, row = points[shown], column[shown], row[shown]
    # Of several values for one pixel the last stays, which is the nearest.
    order = np.argsort(-points[:, 2])
    picture[row[order], column[order]] = points[order, 3:]
    return picture
