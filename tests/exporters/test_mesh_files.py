"""Mesh files, read by trimesh and by the specification of glTF."""

import numpy as np
import pytest
import torch
import trimesh

from exporters.mesh import Mesh
from exporters.mesh_files import write_mesh
from tests.exporters.glb_reader import Glb

VERTICES = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
# sRGB values and linear light, from the definition of sRGB.
SRGB = np.array([[0.0, 0.5, 1.0], [0.735357, 0.04, 0.2], [1, 1, 1], [0, 0, 0]])
LINEAR = np.array([[0.0, 0.214041, 1.0], [0.5, 0.003096, 0.033105], [1, 1, 1], [0, 0, 0]])
# The files are half as large as the world, and moved.
WORLD_TO_SCENE = torch.tensor([[2.0, 0, 0, 4], [0, 2, 0, 0], [0, 0, 2, -2], [0, 0, 0, 1]])
IN_FILES = VERTICES / 2 - [2, 0, -1]


def written(tmp_path, suffix, roughness=None):
    mesh = Mesh(VERTICES, FACES, np.ones(4), SRGB.astype(np.float32), roughness)
    write_mesh(tmp_path / f"mesh.{suffix}", mesh, WORLD_TO_SCENE)
    return tmp_path / f"mesh.{suffix}"


def test_glb_of_radiance_is_unlit_with_linear_colours(tmp_path):
    file = Glb(written(tmp_path, "glb").read_bytes())
    np.testing.assert_allclose(file.attribute("POSITION"), IN_FILES, atol=1e-6)
    np.testing.assert_array_equal(file.faces, FACES)
    colours = file.attribute("COLOR_0")
    np.testing.assert_allclose(colours[:, :3], LINEAR, atol=1e-5)
    assert (colours[:, 3] == 1).all()
    assert file.material["extensions"] == {"KHR_materials_unlit": {}}
    assert file.root["extensionsUsed"] == ["KHR_materials_unlit"]
    position = file.root["accessors"][file.primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose([position["min"], position["max"]],
                               [IN_FILES.min(0), IN_FILES.max(0)])


def test_glb_of_a_relightable_model_is_lit_with_its_roughness(tmp_path):
    file = Glb(written(tmp_path, "glb", np.array([0.2, 0.3, 0.5, 0.9])).read_bytes())
    assert "extensions" not in file.material and "extensionsUsed" not in file.root
    surface = file.material["pbrMetallicRoughness"]
    assert surface == {"metallicFactor": 0, "roughnessFactor": pytest.approx(0.4)}
    np.testing.assert_allclose(file.attribute("COLOR_0")[:, :3], LINEAR, atol=1e-5)
    normals = file.attribute("NORMAL")
    # Three faces in the planes of the axes meet at the origin, with areas 1, 1.5 and 3.
    np.testing.assert_allclose(normals[0], -np.array([6, 3, 2]) / 7, atol=1e-6)


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_another_library_reads_positions_faces_and_colours(tmp_path, suffix):
    mesh = trimesh.load(written(tmp_path, suffix), process=False, force="mesh")
    np.testing.assert_allclose(mesh.vertices, IN_FILES, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, FACES)
    if suffix != "glb":  # Beside a material, trimesh ignores vertex colours.
        np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3] / 255, SRGB, atol=0.003)


SMALL = np.array([[0, 0, 0], [0.011, 0, 0], [0, 0.013, 0], [0, 0, 0.017]])
PLACE = np.array([448211.25, 5411932.5, 311.125])


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
@pytest.mark.parametrize("place", [np.zeros(3), PLACE])
def test_meshes_keep_small_steps_at_map_coordinates(suffix, place, tmp_path):
    to_scene = np.diag([4.0, 4, 4, 1])
    to_scene[:3, 3] = -4 * place
    mesh = Mesh(4 * SMALL, FACES, np.ones(4), np.full((4, 3), [1.0, 0.5, 0.25]))
    write_mesh(tmp_path / f"a.{suffix}", mesh, torch.from_numpy(to_scene))
    found = trimesh.load(tmp_path / f"a.{suffix}", process=False)
    if isinstance(found, trimesh.Scene):
        found = found.to_geometry()
    np.testing.assert_allclose(found.vertices, SMALL + place, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(found.faces, FACES)
    if suffix != "glb":
        np.testing.assert_array_equal(found.visual.vertex_colors[:, :3], [[255, 128, 64]] * 4)
