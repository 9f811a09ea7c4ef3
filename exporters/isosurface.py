"""Isosurfaces of a density by sparse marching cubes, and a software rasterizer for meshes.

Points are `[..., 3]` float64 NumPy arrays in the coordinates of a box; a mesh is `vertices [V, 3]`
and `faces [F, 3]`, counter-clockwise seen from outside.
"""

from collections.abc import Callable
from typing import NamedTuple

import mcubes
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Density = Callable[[np.ndarray], np.ndarray]

# Cells along each side of a block, the unit in which the grid is evaluated.
BLOCK = 4

# Rasterized points per chunk.
POINTS_PER_CHUNK = 1 << 20


# Sparse marching cubes.


class Grid(NamedTuple):
    """A lattice of `shape` points from the corner `origin [3]`; cells are cubes of `cell_size`."""

    origin: np.ndarray
    cell_size: float
    shape: tuple[int, ...]

    def points(self, index: np.ndarray) -> np.ndarray:
        """Points `[..., 3]` of grid coordinates `[..., 3]`."""
        return self.origin + self.cell_size * np.asarray(index)


class Isosurface(NamedTuple):
    """A mesh, and the evaluation that found it.

    density_range: smallest and largest density that was evaluated; num_evaluated: number of grid
    points that were evaluated.
    """

    vertices: np.ndarray
    faces: np.ndarray
    density_range: tuple[float, float]
    num_evaluated: int


def make_grid(low: np.ndarray, high: np.ndarray, grid_size: int) -> Grid:
    """The `Grid` of the box from `low [3]` to `high [3]`, `grid_size` points along the longest."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    cell_size = float((high - low).max()) / (grid_size - 1)
    shape = np.maximum(np.ceil((high - low) / cell_size - 1e-6) + 1, 2)
    return Grid(low, cell_size, tuple(int(n) for n in shape))


def isosurface(density: Density, grid: Grid, threshold: float, seeds: np.ndarray,
               visible: Callable[[np.ndarray, float], np.ndarray] | None = None) -> Isosurface:
    """The surface on which `density` equals `threshold`, evaluated only near the surface.

    density: maps points `[M, 3]` to `[M]`; each grid point is evaluated at most once.
    seeds: points `[K, 3]` near the surface.
    visible: maps points `[M, 3]` and a radius to a bool `[M]`, which points have something within
        the radius that should be in the mesh; None for everywhere.
    Blocks of cells that hold seeds, or whose corners lie on both sides of the surface, are
    evaluated, then repeatedly the neighbours into which the surface continues. Each visible
    component that a seed or a block corner hits is found completely.
    """
    values = _evaluate_near_surface(density, grid, threshold, seeds, visible)
    known = np.isfinite(values)
    # Unknown points count as empty. Vertices between them and known points are removed again.
    vertices, faces = mcubes.marching_cubes(np.where(known, values, np.float32(0)), threshold)
    lower, upper = np.floor(vertices).astype(int), np.ceil(vertices).astype(int)
    valid = known[tuple(lower.T)] & known[tuple(upper.T)]
    faces, used = select_faces(faces, valid[faces].all(axis=1))
    evaluated = values[known]
    density_range = float(evaluated.min()), float(evaluated.max())
    return Isosurface(grid.points(vertices[used]), faces, density_range, len(evaluated))


def _evaluate_near_surface(density: Density, grid: Grid, threshold: float, seeds: np.ndarray,
                           visible: Callable | None) -> np.ndarray:
    """Densities on the grid, NaN where they were not evaluated. Arguments as in `isosurface`."""
    values = np.full(grid.shape, np.nan, dtype=np.float32)
    num_blocks = np.array([-(-(n - 1) // BLOCK) for n in grid.shape])
    done = np.zeros(num_blocks, dtype=bool)
    frontier = np.concatenate([_blocks_crossed_at_corners(density, grid, threshold, values),
                               _blocks_of_points(seeds, grid)])
    while len(frontier):
        frontier = np.unique(frontier, axis=0)
        frontier = frontier[~done[tuple(frontier.T)]]
        done[tuple(frontier.T)] = True
        if visible is not None:
            centres = grid.points((frontier + 0.5) * BLOCK)
            frontier = frontier[visible(centres, 0.5 * 3**0.5 * BLOCK * grid.cell_size)]
        _evaluate(density, grid, values, _points_of_blocks(frontier, grid.shape).reshape(-1, 3))
        frontier = _neighbours(frontier, values, threshold, num_blocks)
    return values


def _blocks_crossed_at_corners(density: Density, grid: Grid, threshold: float,
                               values: np.ndarray) -> np.ndarray:
    """Blocks `[K, 3]` with corners on both sides of the threshold; evaluates all corners."""
    axes = [np.minimum(np.arange(-(-(n - 1) // BLOCK) + 1) * BLOCK, n - 1) for n in grid.shape]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    _evaluate(density, grid, values, corners.reshape(-1, 3))
    above = values[np.ix_(*axes)] > threshold
    of_block = np.stack([above[tuple(slice(i, i + len(axis) - 1)
                                     for i, axis in zip(corner, axes, strict=True))]
                         for corner in np.ndindex(2, 2, 2)])
    return np.argwhere(of_block.any(axis=0) & ~of_block.all(axis=0))


def _blocks_of_points(points: np.ndarray, grid: Grid) -> np.ndarray:
    """Blocks `[K, 3]` that contain points `[K', 3]`; points outside the grid are skipped."""
    index = np.floor((np.asarray(points).reshape(-1, 3) - grid.origin) / grid.cell_size)
    index = index.astype(int)
    inside = ((index >= 0) & (index < np.array(grid.shape) - 1)).all(axis=1)
    return index[inside] // BLOCK


def _points_of_blocks(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Grid coordinates `[K, B, B, B, 3]` of the points of blocks; clamped to the grid."""
    within = np.stack(np.meshgrid(*[np.arange(BLOCK + 1)] * 3, indexing="ij"), axis=-1)
    return np.minimum(blocks[:, None, None, None] * BLOCK + within, np.array(shape) - 1)


def _evaluate(density: Density, grid: Grid, values: np.ndarray, index: np.ndarray) -> None:
    """Fill in `values` at grid coordinates `[M, 3]`, except those already known."""
    flat = np.unique(np.ravel_multi_index(tuple(index.T), values.shape))
    flat = flat[np.isnan(values.reshape(-1)[flat])]
    points = grid.points(np.stack(np.unravel_index(flat, values.shape), axis=-1))
    values.reshape(-1)[flat] = density(points)


def _neighbours(blocks: np.ndarray, values: np.ndarray, threshold: float,
                num_blocks: np.ndarray) -> np.ndarray:
    """Blocks `[K', 3]` behind those sides of `blocks [K, 3]` that the surface crosses."""
    above = values[tuple(np.moveaxis(_points_of_blocks(blocks, values.shape), -1, 0))] > threshold
    neighbours = []
    for axis in range(3):
        for end, offset in ((0, -1), (-1, 1)):
            side = above.take(end, axis=axis + 1)
            crossed = side.any(axis=(1, 2)) & ~side.all(axis=(1, 2))
            neighbours.append(blocks[crossed] + offset * np.eye(3, dtype=int)[axis])
    found = np.concatenate(neighbours)
    return found[((found >= 0) & (found < num_blocks)).all(axis=1)]


# Parts of meshes.


def select_faces(faces: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The selected faces, renumbered, and the old indices of the vertices that they use."""
    used, renumbered = np.unique(faces[keep], return_inverse=True)
    return renumbered.reshape(-1, 3), used


def component_of_faces(num_vertices: int, faces: np.ndarray) -> np.ndarray:
    """Index `[F]` of the connected component of each face, counted from 0."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    shape = num_vertices, num_vertices
    adjacency = coo_array((np.ones(len(edges), dtype=bool), edges.T), shape=shape)
    _, of_vertex = connected_components(adjacency, directed=False)
    return np.unique(of_vertex[faces[:, 0]], return_inverse=True)[1]


# Images of meshes.


def rasterize(pixels: np.ndarray, depths: np.ndarray, faces: np.ndarray, values: np.ndarray,
              width: int, height: int) -> np.ndarray:
    """Image `[height, width, C]` of a mesh; 1 in pixels that no triangle covers.

    pixels `[V, 2]`, depths `[V]`: projected vertices; values `[V, C]`: such as colours.
    Triangles are sampled by points less than a pixel apart; the nearest point in a pixel is shown.
    Inverse depths, and values divided by depth, are linear in the image (perspective).
    """
    image = np.ones((height * width, values.shape[1]), dtype=np.float32)
    nearest = np.full(height * width, np.inf, dtype=np.float32)
    faces = faces[_in_view(pixels[faces], depths[faces], width, height)]
    steps = _steps_per_edge(pixels[faces], 4 * max(width, height))
    inverse = 1 / np.where(depths > 0, depths, 1)[:, None]
    vertices = np.concatenate([pixels, inverse, values * inverse], axis=1).astype(np.float32)
    for n in np.unique(steps):
        weights = _barycentric_weights(n)
        group = faces[steps == n]
        for chunk in np.array_split(group, -(-len(group) * len(weights) // POINTS_PER_CHUNK)):
            points = np.einsum("pk,fkc->fpc", weights, vertices[chunk])
            points = points.reshape(-1, vertices.shape[1])
            points[:, 2] = 1 / points[:, 2]
            points[:, 3:] *= points[:, 2:3]
            _splat_points(points, image, nearest, width, height)
    return image.reshape(height, width, -1)


def _in_view(corners: np.ndarray, depths: np.ndarray, width: int, height: int) -> np.ndarray:
    """Which triangles, corners `[F, 3, 2]` in pixels, may be in the image and before the camera."""
    low, high = corners.min(axis=1), corners.max(axis=1)
    overlaps = (high >= 0).all(axis=1) & (low < [width, height]).all(axis=1)
    return overlaps & (depths > 0).all(axis=1)


def _steps_per_edge(corners: np.ndarray, most: int) -> np.ndarray:
    """Number of steps `[F]`, less than a pixel long, along the longest edge of each triangle."""
    edges = corners - np.roll(corners, 1, axis=1)
    longest = np.linalg.norm(edges, axis=2).max(axis=1, initial=0)
    return np.clip(np.ceil(1.5 * longest), 1, most).astype(int)


def _barycentric_weights(n: int) -> np.ndarray:
    """Barycentric weights `[P, 3]` of a regular triangular lattice with n steps per edge."""
    a, b = np.mgrid[0 : n + 1, 0 : n + 1].reshape(2, -1) / n
    return np.stack([a, b, 1 - a - b], axis=1)[a + b <= 1 + 1e-9].astype(np.float32)


def _splat_points(points: np.ndarray, image: np.ndarray, nearest: np.ndarray, width: int,
                  height: int) -> None:
    """Write points (x, y, depth, values) into a flat image and depth buffer, if they are nearer."""
    column, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    points, pixel = points[inside], (row * width + column)[inside]
    nearer = points[:, 2] < nearest[pixel]
    points, pixel = points[nearer], pixel[nearer]
    # Of several values written to one pixel the last remains: here the nearest.
    order = np.argsort(-points[:, 2])
    nearest[pixel[order]] = points[order, 2]
    image[pixel[order]] = points[order, 3:]
