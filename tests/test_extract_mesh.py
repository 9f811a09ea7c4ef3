"""Meshes of analytic scenes in world coordinates, and the script as users run it."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from imageio.v3 import imread
from scipy.spatial.transform import Rotation

import checkpoint
import extract_mesh
import train
from checkpoint import Checkpoint
from config import default_config
from datasets import load_dataset
from exporters.survey import density_at, survey_scene
from ray_utils import image_rays
from rendering import render_image
from runtime.errors import UserError
from tests.analytic import AnalyticModel, ball, brick, union
from tests.exporters.glb_reader import Glb
from tests.processes import Script, run_script
from tests.scenes import write_blender, write_llff

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.8)


def colour_by_side(points):
    """Red where x > 0, blue elsewhere, which distinguishes left from right."""
    red, blue = (points.new_tensor(c) for c in (RED, BLUE))
    return torch.where(points[..., :1] > 0, red, blue)


def analytic_run(folder, model, dataset_name="blender", **flags):
    """A finished run with an analytic model and the cameras of the scene in `folder`."""
    ends = {} if dataset_name == "llff" else {"near": 2.0, "far": 6.0}
    config = default_config(dataset_name=dataset_name, scene=str(folder), device="cpu",
                            grid_size=64, chunk=2048, **ends, **flags)
    scenes = load_dataset(config, "train").scenes()
    return Checkpoint(model=model, config=config, saved_config=config, step=7, scene=scenes,
                      optimizer={}, path=folder.parent / "log" / "checkpoint_00000007.pt")


@pytest.fixture
def blender_scene(tmp_path):
    write_blender(tmp_path / "scene", num_views=12, size=(48, 40))
    return tmp_path / "scene"


@pytest.fixture
def coarse_scene(tmp_path):
    """A survey of a quarter of the pixels, for errors."""
    write_blender(tmp_path / "scene", num_views=12, size=(24, 20))
    return tmp_path / "scene"


def extract(monkeypatch, run, *flags):
    """The mesh that the script writes for a run, and its folder."""
    run.path.parent.mkdir(exist_ok=True)
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    assert extract_mesh.main(["--run", "unused", *flags]) == 0
    folder = max(run.path.parent.glob("mesh_*"), key=lambda p: p.stat().st_mtime_ns)
    file = next(p for p in folder.glob("mesh.*") if p.suffix != ".json")
    return trimesh.load(file, process=False, force="mesh"), folder


def test_a_ball_has_the_right_position_size_and_colours(monkeypatch, blender_scene):
    centre = np.array([0.2, -0.1, 0.15])
    run = analytic_run(blender_scene, AnalyticModel(ball(centre, 0.7), colour_by_side))
    mesh, folder = extract(monkeypatch, run)
    step = 1.4 / 63
    radii = np.linalg.norm(mesh.vertices - centre, axis=1)
    assert np.abs(radii - 0.7).mean() < 0.5 * step and np.abs(radii - 0.7).max() < 1.5 * step
    # The cameras are at 23 degrees of elevation and do not see the underside.
    assert mesh.vertices[:, 2].max() > centre[2] + 0.69
    assert mesh.vertices[:, 2].min() > centre[2] - 0.7 + 0.1
    assert (mesh.face_normals * (mesh.triangles_center - centre)).sum(axis=1).min() > 0
    colours = mesh.visual.vertex_colors[:, :3] / 255
    right, left = mesh.vertices[:, 0] > 0.05, mesh.vertices[:, 0] < -0.05
    np.testing.assert_allclose(colours[right], np.tile(RED, (right.sum(), 1)), atol=0.02)
    np.testing.assert_allclose(colours[left], np.tile(BLUE, (left.sum(), 1)), atol=0.02)
    stats = json.loads((folder / "mesh.json").read_text())
    assert stats["faces"] == len(mesh.faces) and stats["vertices"] == len(mesh.vertices)


def test_keep_unseen_keeps_the_underside_that_no_camera_sees(monkeypatch, blender_scene):
    run = analytic_run(blender_scene, AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side))
    mesh, _ = extract(monkeypatch, run, "--keep_unseen", "--sigma_threshold", "100")
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.03)


def test_unseen_blocks_are_not_evaluated(monkeypatch, blender_scene):
    """No block near the inner surface of a hollow ball is evaluated."""
    hollow = lambda p: torch.maximum(ball([0, 0, 0], 0.8)(p), -ball([0, 0, 0], 0.5)(p))  # noqa: E731
    run = analytic_run(blender_scene, AnalyticModel(hollow, colour_by_side))
    box = [word for axis in "xyz" for word in (f"--{axis}_range", "-1", "1")]
    mesh, folder = extract(monkeypatch, run, *box)
    assert np.linalg.norm(mesh.vertices, axis=1).min() > 0.75
    seen = json.loads((folder / "mesh.json").read_text())["evaluated"]
    mesh, folder = extract(monkeypatch, run, *box, "--keep_unseen", "--min_component", "0")
    assert np.linalg.norm(mesh.vertices, axis=1).min() < 0.52
    assert json.loads((folder / "mesh.json").read_text())["evaluated"] > 1.15 * seen


def test_small_and_background_coloured_components_are_removed(monkeypatch, blender_scene):
    shapes = union(ball([0, 0, 0], 0.5), ball([0, 0.9, 0.3], 0.06), ball([0.9, 0, 0.2], 0.25))

    def colour(points):
        white = points[..., :1] > 0.6
        return torch.where(white, 1.0, colour_by_side(points))

    run = analytic_run(blender_scene, AnalyticModel(shapes, colour))
    mesh, _ = extract(monkeypatch, run, "--min_component", "0.1")
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.55
    mesh, _ = extract(monkeypatch, run, "--min_component", "0", "--keep_unseen")
    assert mesh.body_count == 3


def test_fused_distances_give_the_seen_surface(monkeypatch, blender_scene):
    run = analytic_run(blender_scene, AnalyticModel(ball([0.2, 0, 0], 0.7), colour_by_side))
    mesh, folder = extract(monkeypatch, run, "--method", "tsdf")
    assert folder.name == "mesh_00000007_64_tsdf"
    radii = np.linalg.norm(mesh.vertices - [0.2, 0, 0], axis=1)
    assert np.abs(radii - 0.7).mean() < 0.5 * 1.4 / 63
    assert mesh.vertices[:, 2].max() > 0.69 and mesh.vertices[:, 2].min() > -0.6
    right = mesh.vertices[:, 0] > 0.05
    colours = mesh.visual.vertex_colors[right][:, :3] / 255
    assert (np.abs(colours - RED).max(axis=1) < 0.02).mean() > 0.999
    stats = json.loads((folder / "mesh.json").read_text())
    assert stats["method"] == "tsdf" and stats["sigma_threshold"] is None


def test_flags_of_the_density_are_errors_for_fused_distances(monkeypatch, coarse_scene):
    run = analytic_run(coarse_scene, AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side))
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    for flags in (["--keep_unseen"], ["--sigma_threshold", "5"]):
        with pytest.raises(UserError, match=f"{flags[0]} is for --method density"):
            extract_mesh.main(["--run", "unused", "--method", "tsdf", *flags])


def test_far_surroundings_do_not_enlarge_the_box(monkeypatch, blender_scene):
    """A ball on a wide floor. The cameras surround it at distance 4 and see three times as far."""
    floor = brick([-12, -12, -1], [12, 12, -0.7])
    run = analytic_run(blender_scene, AnalyticModel(
        union(ball([0, 0, 0], 0.7), floor), colour_by_side))
    scene = run.scene["train"]
    run.scene["train"] = replace(
        scene, box=torch.tensor([[-14.0] * 3, [14.0] * 3]),
        cameras=replace(scene.cameras, far=torch.full_like(scene.cameras.far, 14.0)))
    mesh, _ = extract(monkeypatch, run)
    assert np.abs(mesh.vertices[:, :2]).max() < 4.5
    radii = np.linalg.norm(mesh.vertices[mesh.vertices[:, 2] > -0.5], axis=1)
    # Grid cells have a size of 0.11; with the whole floor it would be 0.38.
    np.testing.assert_allclose(radii, 0.7, atol=0.11)


def test_flags_override_the_box_and_the_density(monkeypatch, blender_scene):
    run = analytic_run(blender_scene, AnalyticModel(
        ball([0, 0, 0], 0.7), colour_by_side, peak=100.0, softness=0.05))
    mesh, folder = extract(monkeypatch, run, "--x_range", "0.1", "2", "--sigma_threshold", "20",
                           "--keep_unseen")
    assert folder.name == "mesh_00000007_64_sigma20_x0.1to2_unseen"
    assert mesh.vertices[:, 0].min() == pytest.approx(0.1, abs=1e-5)
    # 100 * sigmoid(-d / 0.05) = 20 is outside the middle of the soft edge.
    radius = 0.7 + 0.05 * np.log(4)
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(radius, abs=0.01)


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_every_format_keeps_vertices_faces_and_colours(monkeypatch, blender_scene, suffix):
    run = analytic_run(blender_scene, AnalyticModel(ball([0.3, 0, 0], 0.6), colour_by_side))
    mesh, folder = extract(monkeypatch, run, "--mesh_format", suffix)
    assert (folder / f"mesh.{suffix}").exists()
    radii = np.linalg.norm(mesh.vertices - [0.3, 0, 0], axis=1)
    assert np.abs(radii - 0.6).max() < 0.04
    if suffix == "glb":
        colours = Glb((folder / "mesh.glb").read_bytes()).attribute("COLOR_0")[:, :3] ** (1 / 2.2)
    else:
        colours = mesh.visual.vertex_colors[:, :3] / 255
    colours = colours[mesh.vertices[:, 0] > 0.1]
    np.testing.assert_allclose(colours, np.tile(RED, (len(colours), 1)), atol=0.03)


@pytest.mark.parametrize("method,error,flipped", [("tsdf", 0.03, 0.04), ("density", 0.02, 0)])
def test_meshes_of_ndc_scenes_are_in_the_coordinates_of_their_files(
        monkeypatch, tmp_path, method, error, flipped):
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.8, 0.8, 9)
    poses[:, 1, 3] = 0.3 * np.cos(np.arange(9))
    # From the cameras' axes to the files'.
    rotation = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    moved = poses.copy()
    moved[:, :3] = rotation @ poses[:, :3]
    moved[:, :3, 3] += [5, 6, 7]
    write_llff(tmp_path / "scene", poses=moved, size=(60, 44))
    config = default_config(dataset_name="llff", scene=str(tmp_path / "scene"), ndc=True,
                            ray_shape="cylinder", bg_range=(0.0, 0.0), factor=4)
    scene = load_dataset(config, "train").scene
    in_files = rotation @ [0.2, -0.1, -4.0] + [5, 6, 7]
    to_scene = scene.world_to_scene.numpy()
    centre = to_scene[:3, :3] @ in_files + to_scene[:3, 3]
    model = AnalyticModel(ball(centre, 0.8 * scene.scale), colour_by_side, ndc=scene.cameras.ndc,
                          peak=700.0, bg_rgb=0.0)
    run = analytic_run(tmp_path / "scene", model, "llff", ndc=True, ray_shape="cylinder",
                       bg_range=(0.0, 0.0), factor=4)
    mesh, _ = extract(monkeypatch, run, "--grid_size", "100", "--method", method)
    radii = np.linalg.norm(mesh.vertices - in_files, axis=1)
    assert np.abs(radii - 0.8).mean() < error
    outward = mesh.vertices[mesh.faces].mean(axis=1) - in_files
    assert ((mesh.face_normals * outward).sum(axis=1) < 0).mean() <= flipped
    # Only the half that faces the cameras, which look along the rotated -z axis.
    assert ((mesh.vertices - in_files) @ (rotation @ [0, 0, 1])).min() > -0.4
    right = (mesh.vertices - in_files) @ (rotation @ [1.0, 0, 0]) + 0.2 > 0.05
    colours = mesh.visual.vertex_colors[right][:, :3] / 255
    np.testing.assert_allclose(colours, np.tile(RED, (len(colours), 1)), atol=0.05)


def test_a_box_in_the_units_of_the_files_follows_their_axes(monkeypatch, tmp_path):
    rotation = Rotation.from_euler("xyz", [20, 30, 40], degrees=True).as_matrix()
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.8, 0.8, 9)
    poses[:, 1, 3] = 0.3 * np.cos(np.arange(9))
    poses[:, :3] = rotation @ poses[:, :3]
    poses[:, :3, 3] += [5, 6, 7]
    write_llff(tmp_path / "scene", poses=poses, size=(60, 44))
    flags = dict(ndc=False, ray_shape="cylinder", bg_range=(0.0, 0.0), factor=4)
    config = default_config(dataset_name="llff", scene=str(tmp_path / "scene"), **flags)
    scene = load_dataset(config, "train").scene
    centre = rotation @ [0.2, -0.1, -4.0] + [5, 6, 7]
    to_scene = scene.world_to_scene.numpy()
    model = AnalyticModel(ball(to_scene[:3, :3] @ centre + to_scene[:3, 3], 0.8 * scene.scale),
                          colour_by_side, bg_rgb=0.0)
    run = analytic_run(tmp_path / "scene", model, "llff", **flags)
    words = ["--grid_size", "120", "--method", "density", "--keep_unseen"]
    lows = np.round(centre + [0, 0, -1], 3)
    typed = [f"--{axis}_range {low} {low + 2}" for axis, low in zip("xyz", lows, strict=True)]
    mesh, _ = extract(monkeypatch, run, *words, "--units", "file", *" ".join(typed).split())
    offsets = mesh.vertices - centre
    assert np.abs(np.linalg.norm(offsets, axis=1) - 0.8).mean() < 0.02
    # A quarter of the ball, cut along the files' axes.
    assert offsets[:, :2].min() >= -0.001 and offsets[:, :2].min(axis=0).max() < 0.05
    np.testing.assert_allclose(offsets.max(axis=0)[:2], 0.8, atol=0.05)
    np.testing.assert_allclose([offsets[:, 2].min(), offsets[:, 2].max()], [-0.8, 0.8], atol=0.05)


def test_the_image_of_the_mesh_matches_the_photograph(monkeypatch, tmp_path):
    """The photographs are renderings of the model, so colours agree pixel by pixel."""
    model = AnalyticModel(brick([-0.6, -0.3, -0.4], [0.5, 0.7, 0.2]), colour_by_side)
    write_blender(tmp_path / "scene", num_views=8, size=(40, 40))
    run = analytic_run(tmp_path / "scene", model)
    cameras = run.scene["train"].cameras
    images = []
    for i in range(8):
        output = render_image(model, image_rays(cameras, i), 4096)
        alpha = output.acc[..., None].clamp(1e-3, 1)
        rgb = ((output.rgb - (1 - alpha)) / alpha).clamp(0, 1)
        images.append((torch.cat([rgb, alpha], -1) * 255).round().byte().numpy())
    write_blender(tmp_path / "photographed", images=images)
    config = run.config.replace(scene=str(tmp_path / "photographed"))
    _, folder = extract(monkeypatch, replace(run, config=config, saved_config=config))
    view = imread(folder / "view.png") / 255.0
    photograph, image = view[:, :40], view[:, 42:82]
    assert np.abs(photograph - image).mean() < 0.03
    assert (np.abs(photograph - image).max(axis=-1) > 0.2).mean() < 0.05


def test_without_the_dataset_a_rendering_replaces_the_photograph(monkeypatch, blender_scene,
                                                                capsys):
    run = analytic_run(blender_scene, AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side))
    blender_scene.rename(blender_scene.with_name("gone"))
    _, folder = extract(monkeypatch, run)
    assert "shown beside a rendering, not the photograph" in capsys.readouterr().out
    view = imread(folder / "view.png") / 255.0
    assert np.abs(view[:, :48] - view[:, 50:98]).mean() < 0.03


# Errors.


def test_an_empty_scene_is_an_error(monkeypatch, coarse_scene):
    model = AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side, peak=0.01)
    run = analytic_run(coarse_scene, model)
    with pytest.raises(UserError, match="no ray of the training views hits a surface.*longer"):
        extract(monkeypatch, run)
    with pytest.raises(UserError, match=r"densities range from .* to 0\.0.*--sigma_threshold"):
        extract(monkeypatch, run, "--sigma_threshold", "5")
    assert not list(run.path.parent.glob("mesh_*"))


def test_a_density_out_of_range_or_a_box_beside_the_scene_is_an_error(monkeypatch, coarse_scene):
    run = analytic_run(coarse_scene, AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side))
    message = r"no surface of density 1e\+04.*densities range from 0 to 2"
    with pytest.raises(UserError, match=message):
        extract(monkeypatch, run, "--sigma_threshold", "10000")
    with pytest.raises(UserError, match="there is no surface.*--x_range"):
        extract(monkeypatch, run, "--x_range", "1.2", "1.6")
    with pytest.raises(UserError, match="from 1 to -1 along y; give --y_range"):
        extract(monkeypatch, run, "--y_range", "1", "-1")


def test_an_impossible_output_folder_is_an_error_before_the_work(monkeypatch, coarse_scene):
    run = analytic_run(coarse_scene, AnalyticModel(ball([0, 0, 0], 0.7), colour_by_side))
    run.path.parent.mkdir()
    (run.path.parent / "mesh_00000007_64").write_text("a file")
    with pytest.raises(FileExistsError):
        extract(monkeypatch, run)
    assert run.model.num_queries == 0


def test_a_surface_that_no_camera_sees_is_an_error(monkeypatch, coarse_scene):
    run = analytic_run(coarse_scene, AnalyticModel(
        union(ball([0, 0, 0], 0.8), ball([0, 0, -2.4], 0.2)), colour_by_side))
    run.scene["train"] = replace(run.scene["train"], box=torch.tensor([[-3.0] * 3, [3.0] * 3]))
    with pytest.raises(UserError, match="no training view sees the surface|there is no surface"):
        extract(monkeypatch, run, "--z_range", "-2.9", "-1.6")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a hardly trained network, and a command line that finds a surface in it."""
    folder = tmp_path_factory.mktemp("trained")
    write_blender(folder / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(folder / "scene"),
                "--log_dir", str(folder), "--exp_name", "run", "--max_steps", "1",
                "--eval_every", "0", "--no-final_eval"])
    run = checkpoint.load_checkpoint(folder / "run")
    survey = survey_scene(run.model, run.scene["train"], chunk=4096)
    density = density_at(run.model, survey, 0.1, 999)
    typical = np.median(density(np.random.default_rng(0).uniform(-2, 2, (500, 3))))
    return folder / "run", ["extract_mesh.py", "--run", folder / "run", "--keep_unseen",
                            "--sigma_threshold", f"{typical:.4f}"]


def test_the_script_extracts_a_mesh_of_a_run_folder(trained, capsys):
    _, words = trained
    assert extract_mesh.main([*map(str, words[1:]), "--grid_size", "16"]) == 0
    out = capsys.readouterr().out
    path = Path(out.split("Mesh: ")[1].split("\n")[0])
    assert len(trimesh.load(path).faces) > 10
    assert "% of the grid" in out


def test_a_full_disk_is_an_error_and_leaves_no_partial_file(trained):
    folder, words = trained
    result = run_script(*words, "--grid_size", "20", limit=2000)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "mesh.ply could not be written" in result.stderr
    assert not list(folder.glob("mesh_*_20_*"))
    assert run_script(*words, "--grid_size", "20").returncode == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_extraction_leaves_no_mesh_and_can_be_repeated(trained, stop):
    folder, words = trained
    words = [*words, "--grid_size", "150"]
    process = Script(*words)
    while "\nSurface of density" not in process.printed():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(stop)
    out = "".join(process.communicate(timeout=60))
    assert process.returncode != 0 and "Traceback" not in out
    assert not list(folder.glob("mesh_*_150*/mesh.*"))
    assert run_script(*words[:-1], "24").returncode == 0
