"""Atlas, texels and textured files of a small mesh whose colours are a function of position."""

import sys

import numpy as np
import pytest
import torch
import trimesh
from imageio.v3 import imread

import checkpoint
import extract_mesh
from config import default_config
from exporters.mesh import Appearance, Mesh, decimate
from exporters.mesh_files import write_textured_mesh
from exporters.mesh_views import draw
from exporters.survey import grid_to_world, world_to_grid
from exporters.texture import (
    TexturedMesh,
    barycentric,
    check_packages,
    fill,
    sample_bilinear,
    texels,
    unwrap,
)
from runtime.errors import UserError
from tests.analytic import AnalyticModel, ball
from tests.exporters.glb_reader import Glb
from tests.exporters.test_tsdf import wall_cameras
from tests.scenes import write_blender
from tests.test_extract_mesh import analytic_run

SIZE = 128


def sphere():
    shape = trimesh.creation.icosphere(subdivisions=3)
    return Mesh(shape.vertices, shape.faces, np.full(len(shape.vertices), 0.1))


def test_texels_of_an_atlas_lie_on_the_surface_and_in_one_face_each():
    mesh = sphere()
    source, faces, uv = unwrap(mesh.vertices / 0.1, mesh.faces, SIZE)
    assert uv.min() >= 0 and uv.max() <= 1
    # The same triangles, at the same places.
    np.testing.assert_array_equal(source[faces], mesh.faces)
    covered, corners, weights = texels(faces, uv, SIZE)
    assert 0.3 < covered.mean() < 1 and len(corners) == covered.sum()
    points = np.einsum("mk,mkc->mc", weights, mesh.vertices[source][corners])
    radii = np.linalg.norm(points, axis=1)
    assert 0.97 < radii.min() and radii.max() < 1 + 1e-9
    # A texel's own centre, if its face contains it.
    row, column = np.nonzero(covered)
    centres = np.stack([column, row], axis=1) + 0.5
    found = SIZE * np.einsum("mk,mkc->mc", weights, uv[corners])
    distances = np.linalg.norm(found - centres, axis=1)
    assert np.median(distances) < 1e-6 and distances.max() < 1.5


def test_small_faces_have_texels_too():
    mesh = sphere()
    vertices = np.concatenate([mesh.vertices, 0.02 * mesh.vertices + 3])
    faces = np.concatenate([mesh.faces, mesh.faces + len(mesh.vertices)])
    _, faces, uv = unwrap(vertices / 0.01, faces, 2048)
    (ax, ay), (bx, by) = (uv[faces[:, corner]].T - uv[faces[:, 0]].T for corner in (1, 2))
    assert (ax * by != ay * bx).all()


def test_barycentric_coordinates_are_those_of_the_corners_and_never_negative():
    corners = np.array([[[0, 0], [4, 0], [0, 2]]] * 4, dtype=float)
    points = np.array([[0, 0], [4, 0], [1, 1], [-1, 1.0]])
    expected = [[1, 0, 0], [0, 1, 0], [0.25, 0.25, 0.5], [0.5 / 1.25, 0, 0.5 / 1.25]]
    found = barycentric(points, corners)
    np.testing.assert_allclose(found[:3], expected[:3])
    assert (found >= 0).all() and np.allclose(found.sum(axis=1), 1)


def test_uncovered_texels_take_the_nearest_value():
    covered = np.zeros((4, 6), dtype=bool)
    covered[1, 1], covered[2, 5] = True, True
    image = fill(Appearance(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0.2, 0.7])), covered)
    assert image.colours.shape == (4, 6, 3)
    np.testing.assert_array_equal(image.roughness[:, 0], 0.2)
    np.testing.assert_array_equal(image.roughness[:, 5], 0.7)


def test_bilinear_samples_of_a_ramp_are_exact_between_centres():
    ramp = np.stack(np.meshgrid(np.arange(4) + 0.5, np.arange(2) + 0.5), axis=-1)
    uv = np.array([[0.3, 0.5], [0.125, 0.25], [0.0, 1.0]])
    found = sample_bilinear(ramp, uv)
    np.testing.assert_allclose(found, [[1.2, 1.0], [0.5, 0.5], [0.5, 1.5]])


def test_faces_of_a_decimated_mesh_are_evenly_large_in_images():
    """In NDC a plane of faces of one size stays one, though its far end is 20 times as large."""
    ndc = (30.0, 40, 40, 1.0)
    grid = np.stack(np.meshgrid(*[np.arange(41.0)] * 2), axis=-1).reshape(-1, 2)
    corner = np.arange(41 * 40).reshape(40, 41)[:, :40].reshape(-1, 1)
    faces = np.concatenate([corner + [0, 1, 41], corner + [1, 42, 41]])
    x, y = (grid / 20 - 1).T
    # Bumps everywhere, so that no face is flat and free to go.
    z = 0.45 * y + 0.45 + 0.01 * np.cos(5 * grid.sum(axis=1))
    vertices, cells = grid_to_world(np.stack([x, y, z], axis=1), 0.05, ndc)
    mesh = decimate(Mesh(vertices, faces, cells), 800, 0.05, ndc)
    assert 700 < len(mesh.faces) < 850
    found = world_to_grid(mesh.vertices, ndc)
    # As many corners near as far.
    assert 0.35 < (found[:, 1] < 0).mean() < 0.65
    expected = 0.45 * found[:, 1] + 0.45
    assert np.percentile(np.abs(found[:, 2] - expected), 95) < 0.02
    np.testing.assert_allclose(mesh.cell_sizes, grid_to_world(found, 0.05, ndc)[1])


@pytest.mark.parametrize("package,command", [
    ("fast_simplification", "pip install fast-simplification"), ("xatlas", "pip install xatlas")])
def test_a_missing_package_is_named_with_its_command(monkeypatch, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    mesh = sphere()
    with pytest.raises(UserError, match=f"need.*{command}"):
        decimate(mesh, 100, 0.1, None)
        unwrap(mesh.vertices, mesh.faces, SIZE)
    with pytest.raises(UserError, match=f"need.*{command}"):
        check_packages(default_config(texture=SIZE))
    check_packages(default_config())


def quad(roughness=None):
    """A square in the plane z = -2, its left half red and its right half green, the top darker."""
    image = np.zeros((SIZE, SIZE, 3))
    image[:, : SIZE // 2, 0], image[:, SIZE // 2 :, 1] = 0.8, 0.6
    image[: SIZE // 2] *= 0.5
    vertices = np.array([[-0.5, -0.5, -2], [0.5, -0.5, -2], [0.5, 0.5, -2], [-0.5, 0.5, -2]])
    mesh = Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.ones(4))
    uv = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    return TexturedMesh(mesh, uv, image, roughness, np.tile([0.0, 0, 1], (4, 1)))


def test_a_textured_mesh_is_drawn_upright():
    image = draw(quad(), wall_cameras(), 0, 40, 30)
    assert image.shape == (60, 80, 7)
    # The square covers the middle 20 x 20 of 40 x 30 pixels.
    np.testing.assert_allclose(image[12:28, 22:38, :3].mean(axis=(0, 1)), [0.4, 0, 0], atol=0.01)
    np.testing.assert_allclose(image[32:48, 42:58, :3].mean(axis=(0, 1)), [0, 0.6, 0], atol=0.01)
    assert (image[:8, :, 6] == 0).all() and (image[12:48, 22:58, 6] == 1).all()
    np.testing.assert_allclose(image[30, 40, 3:6], [0.5, 0.5, 1], atol=1e-6)


def test_other_readers_find_positions_coordinates_and_images(tmp_path):
    write_textured_mesh(tmp_path, quad(), torch.eye(4))
    loaded = {name: trimesh.load(tmp_path / name, process=False, force="mesh")
              for name in ("mesh.glb", "mesh.obj")}
    expected = quad()
    for name, mesh in loaded.items():
        np.testing.assert_allclose(mesh.vertices[mesh.faces],
                                   expected.mesh.vertices[expected.mesh.faces], atol=1e-6)
        # trimesh's v runs upwards.
        np.testing.assert_allclose(mesh.visual.uv[mesh.faces] * [1, -1] + [0, 1],
                                   expected.uv[expected.mesh.faces], atol=1e-6)
        material = mesh.visual.material
        image = getattr(material, "baseColorTexture", None) or material.image
        np.testing.assert_allclose(np.asarray(image)[..., :3] / 255, expected.colours, atol=0.003)
        assert name.endswith("obj") or material.metallicFactor == 0
    assert Glb((tmp_path / "mesh.glb").read_bytes()).material["extensions"]


@pytest.mark.parametrize("place", [[0, 0, 0], [448211.25, 5411932.5, 311.125]])
def test_textured_meshes_keep_small_steps_at_map_coordinates(tmp_path, place):
    to_scene = torch.eye(4, dtype=torch.float64)
    to_scene[:3, 3] = -torch.tensor(place)
    write_textured_mesh(tmp_path, quad(), to_scene)
    expected = quad().mesh.vertices + place
    for name in ("mesh.glb", "mesh.obj"):
        mesh = trimesh.load_scene(tmp_path / name, process=False).to_geometry()
        np.testing.assert_allclose(mesh.vertices[mesh.faces], expected[quad().mesh.faces], rtol=0,
                                   atol=1e-5)


def test_textures_of_a_relightable_model_hold_its_roughness(tmp_path):
    roughness = np.linspace(0.1, 0.9, SIZE * SIZE).reshape(SIZE, SIZE)
    write_textured_mesh(tmp_path, quad(roughness), torch.eye(4))
    file = Glb((tmp_path / "mesh.glb").read_bytes())
    assert "extensions" not in file.material
    image = imread(file.image("metallicRoughnessTexture")) / 255
    np.testing.assert_allclose(image[..., 1], roughness, atol=0.003)
    assert (image[..., 2] == 0).all()
    np.testing.assert_allclose(file.attribute("NORMAL"), [[0, 0, 1]] * 4)
    assert "Pr 0.5000" in (tmp_path / "mesh.mtl").read_text()


def bands(points):
    """Smooth colours that vertices of a coarse mesh cannot show."""
    return 0.5 + 0.4 * torch.sin(points * points.new_tensor([12.0, 9.0, 15.0]))


def test_the_script_writes_a_texture_of_the_scene(monkeypatch, tmp_path, capsys):
    write_blender(tmp_path / "scene", num_views=12, size=(48, 40))
    run = analytic_run(tmp_path / "scene", AnalyticModel(ball([0, 0, 0], 0.7), bands))
    run.path.parent.mkdir()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    words = ["--run", "unused", "--grid_size", "40", "--faces", "800", "--texture", "256"]
    assert extract_mesh.main(words) == 0
    folder, = run.path.parent.glob("mesh_*")
    assert folder.name == "mesh_00000007_40_faces800_texture256"
    assert {p.name for p in folder.glob("*.*")} >= {"mesh.glb", "mesh.obj", "mesh.mtl",
                                                    "texture.png", "mesh.json", "view.png"}
    mesh = trimesh.load(folder / "mesh.obj", process=False, force="mesh")
    assert 600 <= len(mesh.faces) <= 800
    # Colours at the middle of the upper faces, away from what no camera sees well.
    middle = mesh.triangles_center
    uv = mesh.visual.uv[mesh.faces].mean(axis=1) * [1, -1] + [0, 1]
    found = sample_bilinear(imread(folder / "texture.png") / 255, uv)
    expected = bands(torch.as_tensor(0.7 * middle / np.linalg.norm(middle, axis=1)[:, None]))
    upper = middle[:, 2] > 0.1
    assert np.abs(found - expected.numpy())[upper].mean() < 0.03
    assert np.abs(0.5 - expected.numpy())[upper].mean() > 0.2


def test_a_format_is_refused_beside_a_texture(monkeypatch, tmp_path):
    write_blender(tmp_path / "scene", num_views=2, size=(8, 8))
    run = analytic_run(tmp_path / "scene", AnalyticModel(ball([0, 0, 0], 0.7), bands))
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    with pytest.raises(UserError, match="--mesh_format is for meshes without --texture"):
        extract_mesh.main(["--run", "unused", "--texture", "64", "--mesh_format", "ply"])
