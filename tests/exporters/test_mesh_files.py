"""Mesh files at map coordinates, read back by trimesh."""

import numpy as np
import pytest
import torch
import trimesh

from exporters.mesh import Mesh, write_mesh

VERTICES = np.array([[0, 0, 0], [0.011, 0, 0], [0, 0.013, 0], [0, 0, 0.017]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])
PLACE = np.array([448211.25, 5411932.5, 311.125])


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
@pytest.mark.parametrize("place", [np.zeros(3), PLACE])
def test_meshes_keep_small_steps_at_map_coordinates(suffix, place, tmp_path):
    to_scene = np.diag([4.0, 4, 4, 1])
    to_scene[:3, 3] = -4 * place
    mesh = Mesh(4 * VERTICES, FACES, np.ones(4), np.full((4, 3), [1.0, 0.5, 0.25]))
    write_mesh(tmp_path / f"a.{suffix}", mesh, torch.from_numpy(to_scene))
    found = trimesh.load(tmp_path / f"a.{suffix}", process=False)
    if isinstance(found, trimesh.Scene):
        found = found.to_geometry()
    np.testing.assert_allclose(found.vertices, VERTICES + place, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(found.faces, FACES)
    np.testing.assert_array_equal(found.visual.vertex_colors[:, :3], [[255, 128, 64]] * 4)
