"""Isosurfaces of densities with known surfaces: complete, and with few evaluations."""

import mcubes
import numpy as np
import pytest

from exporters import isosurface as isosurface_module
from exporters.isosurface import (
    BLOCK,
    component_of_faces,
    isosurface,
    make_grid,
    rasterize,
    select_faces,
)

NO_SEEDS = np.empty((0, 3))


def ball(centre, radius):
    return lambda points: np.maximum(
        0, 1 + radius - np.linalg.norm(points - np.asarray(centre), axis=-1))


def brick(low, high):
    low, high = np.asarray(low), np.asarray(high)
    return lambda points: np.maximum(
        0, 1 - (np.abs(points - (low + high) / 2) - (high - low) / 2).max(axis=-1))


def volume(surface):
    a, b, c = (surface.vertices[surface.faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("grid_size", [24, 37, 64])
def test_a_sphere_has_its_radius_and_centre_to_half_a_voxel(grid_size):
    centre = np.array([0.21, -0.13, 0.34])
    grid = make_grid([-1, -1.2, -0.9], [1.1, 1, 1.3], grid_size)
    surface = isosurface(ball(centre, 0.6), grid, 1.0, NO_SEEDS)
    radii = np.linalg.norm(surface.vertices - centre, axis=1)
    assert np.abs(radii - 0.6).max() < grid.cell_size / 2
    assert np.abs(surface.vertices.mean(axis=0) - centre).max() < grid.cell_size / 2
    # Closed, with faces oriented outward.
    assert volume(surface) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.03)


def test_the_axes_of_a_box_off_the_centre_are_in_the_right_order():
    low, high = np.array([-0.8, 0.1, 0.3]), np.array([-0.2, 0.5, 1.2])
    grid = make_grid([-1, -1, -1], [1, 1.5, 2], 61)
    surface = isosurface(brick(low, high), grid, 1.0, NO_SEEDS)
    assert np.abs(surface.vertices.min(axis=0) - low).max() < grid.cell_size / 2
    assert np.abs(surface.vertices.max(axis=0) - high).max() < grid.cell_size / 2


def test_few_points_are_evaluated_and_none_twice():
    queries = []

    def density(points):
        queries.append(points)
        return ball([0, 0, 0], 0.7)(points)

    grid = make_grid([-1, -1, -1], [1, 1, 1], 129)
    surface = isosurface(density, grid, 1.0, NO_SEEDS)
    queries = np.concatenate(queries)
    assert len(np.unique(queries.round(9), axis=0)) == len(queries) == surface.num_evaluated
    assert len(queries) < 0.15 * np.prod(grid.shape)


@pytest.mark.parametrize("grid_size", [9, 30, 52])
def test_the_sparse_surface_equals_the_dense_one(grid_size):
    density = brick([-0.5, -0.25, -0.75], [0.5, 0.5, 0.75])  # Faces may fall on grid points.
    grid = make_grid([-1, -1, -1], [1, 1.3, 1], grid_size)
    surface = isosurface(density, grid, 1.01, NO_SEEDS)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    whole = density(grid.points(index)).astype(np.float32)
    vertices, faces = mcubes.marching_cubes(whole, 1.01)
    assert len(surface.faces) == len(faces)
    a, b = (np.array(sorted(map(tuple, v.round(6)))) for v in
            (surface.vertices, grid.points(vertices)))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_seed_finds_all_of_a_surface_that_no_block_corner_hits():
    thin = brick([-0.9, 0.013, 0.012], [0.9, 0.045, 0.044])  # A rod between block corners.
    grid = make_grid([-1, -1, -1], [1, 1, 1], 129)
    assert len(isosurface(thin, grid, 1.0, NO_SEEDS).faces) == 0
    surface = isosurface(thin, grid, 1.0, np.array([[0.5, 0.03, 0.012]]))
    assert surface.vertices[:, 0].min() < -0.88 and surface.vertices[:, 0].max() > 0.88


def test_seeds_outside_the_grid_are_ignored():
    grid = make_grid([-1, -1, -1], [1, 1, 1], 20)
    seeds = np.array([[5.0, 0, 0], [-1.0, -7, 0], [1.0, 1.0, 1.0]])
    assert len(isosurface(ball([0, 0, 0], 0.5), grid, 1.0, seeds).faces) > 0


def test_invisible_blocks_are_not_evaluated():
    grid = make_grid([-1, -1, -1], [1, 1, 1], 65)
    density = ball([0, 0, 0], 0.7)
    whole = isosurface(density, grid, 1.0, NO_SEEDS)
    upper = isosurface(density, grid, 1.0, NO_SEEDS,
                       lambda points, radius: points[:, 2] > -radius)
    assert upper.num_evaluated < 0.75 * whole.num_evaluated
    assert upper.vertices[:, 2].max() == whole.vertices[:, 2].max()
    assert -0.3 < upper.vertices[:, 2].min() < 0
    # There is no wall at the border of the evaluated region.
    assert np.abs(np.linalg.norm(upper.vertices, axis=1) - 0.7).max() < grid.cell_size / 2


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_without_a_crossing_the_mesh_is_empty_and_the_range_is_known(level):
    grid = make_grid([-1, -1, -1], [1, 1, 1], 20)
    surface = isosurface(lambda p: np.full(len(p), 1.5), grid, level, np.zeros((1, 3)))
    assert len(surface.faces) == len(surface.vertices) == 0
    assert surface.density_range == (1.5, 1.5)


def test_a_grid_has_cubic_cells_and_covers_its_box():
    grid = make_grid([0, 0, 0], [1, 2, 0.5], 21)
    assert grid.cell_size == pytest.approx(0.1) and grid.shape == (11, 21, 6)
    np.testing.assert_allclose(grid.points([10, 20, 5]), [1, 2, 0.5])


def test_connected_components_are_numbered():
    faces = np.array([[0, 1, 2], [5, 4, 3], [2, 3, 1], [6, 7, 8]])
    assert component_of_faces(9, faces).tolist() == [0, 0, 0, 1]
    kept, used = select_faces(faces, component_of_faces(9, faces) == 1)
    assert kept.tolist() == [[0, 1, 2]] and used.tolist() == [6, 7, 8]


# Images of meshes.


def test_the_nearer_of_two_triangles_is_shown_on_white():
    pixels = np.array([[1, 1], [19, 1], [1, 19], [5, 5], [12, 5], [5, 12.0]])
    depths = np.array([2, 2, 2, 1, 1, 1.0])
    colours = np.repeat([[1.0, 0, 0], [0, 0, 1.0]], 3, axis=0)
    faces = np.array([[3, 4, 5], [0, 1, 2]])
    image = rasterize(pixels, depths, faces, colours, 20, 20)
    assert image[6, 6].tolist() == [0, 0, 1] and image[2, 2].tolist() == [1, 0, 0]
    assert image[18, 18].tolist() == [1, 1, 1]
    # No holes: the number of pixels is the triangle's area, up to its border.
    assert abs((image[..., 1] == 0).sum() - 18 * 18 / 2) < 20


def test_triangles_with_a_corner_outside_the_lens_are_skipped():
    pixels = np.array([[1, 1], [9, 1], [1, np.nan]])
    image = rasterize(pixels, np.ones(3), np.array([[0, 1, 2]]), np.zeros((3, 3)), 10, 10)
    assert (image == 1).all()


def test_triangles_behind_the_camera_or_outside_the_image_are_skipped():
    pixels = np.array([[1, 1], [9, 1], [1, 9], [200, 200], [210, 200], [200, 210.0]])
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    image = rasterize(pixels, np.array([-1, -1, -1, 1, 1, 1.0]), faces, np.zeros((6, 3)), 10, 10)
    assert (image == 1).all()
    assert (rasterize(pixels, np.ones(6), faces[:0], np.zeros((6, 3)), 10, 10) == 1).all()


def test_a_large_triangle_has_no_holes_and_is_split_into_chunks(monkeypatch):
    monkeypatch.setattr(isosurface_module, "POINTS_PER_CHUNK", 1000)
    pixels = np.array([[-10, -10], [820, -10], [-10, 820.0]])
    image = rasterize(pixels, np.ones(3), np.array([[0, 1, 2]]), np.zeros((3, 1)), 400, 400)
    assert (image == 0).all() and image.shape == (400, 400, 1)


def test_blocks_cover_grids_of_any_size():
    for size in range(8, 8 + 2 * BLOCK):
        grid = make_grid([-1, -1, -1], [1, 1, 1], size)
        surface = isosurface(ball([0, 0, 0], 0.97), grid, 1.0, NO_SEEDS)
        assert surface.vertices.max() > 0.97 - grid.cell_size / 2
        assert volume(surface) > 0.85 * 4 / 3 * np.pi * 0.97**3
