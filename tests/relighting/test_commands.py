"""Relighting by the scripts on a small lit scene, and the lights of videos."""

import json
import math
import shutil
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import evaluate
import extract_mesh
import train
import visualize
from checkpoint import load_checkpoint
from config import get_config
from datasets import load_dataset
from planning import timing
from procedural import lit_scene
from relighting.components import COMPONENTS
from relighting.light_paths import frame_lights, typical_light
from relighting.lights import Lights, environment_lights, incident, point_lights
from rendering import render_image
from runtime.errors import UserError
from scripts import bench_relighting
from tests.exporters.glb_reader import Glb
from tests.scenes import write_blender

ORIGIN = torch.zeros(3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lit") / "scene"
    lit_scene.write_nerv(folder, size=16, limit=3)
    return folder


def trained(scene, tmp_path, *flags, steps=6):
    """A run trained through all stages."""
    train.main(["--preset", "debug", "--device", "cpu", "--model", "nerv", "--dataset_name", "nerv",
                "--scene", str(scene), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", str(steps), "--save_every", "3", "--eval_every", "3",
                "--keep_checkpoints", "9", *flags])
    return tmp_path / "run"


def check_scores(run, title):
    """Check that scores and images of all components exist."""
    folder = run / f"eval_{title}_00000006"
    scores = json.loads((folder / "scores.json").read_text())
    assert {"albedo_rmse", "normals_degrees", "roughness_mae"} <= set(scores)
    for name in COMPONENTS:
        assert iio.imread(folder / f"000_{name}.png").shape == (16, 16, 3)


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory):
    """A run that tests read through copies."""
    return trained(scene, tmp_path_factory.mktemp("run"), "--no-final_eval", "--eval_every", "0")


@pytest.fixture
def run_copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def test_training_and_scoring_under_environments(scene, tmp_path):
    run = trained(scene, tmp_path, "--lights", "env", "--shade_at", "surface")
    check_scores(run, "test_env")


def test_the_time_estimate_renders_as_the_last_stage_does(scene, tmp_path, monkeypatch):
    is_shading = []

    def render(model, *args):
        is_shading.append(model.is_shading())
        return render_image(model, *args)

    monkeypatch.setattr(timing, "render_image", render)
    trained(scene, tmp_path, "--no-final_eval", "--eval_every", "0")
    assert len(is_shading) > 1 and all(is_shading)


@pytest.mark.parametrize("flags", [
    ["--nerv_field", "hash"], ["--nerv_field", "mlp", "--shade_at", "surface"],
])
def test_scripts_run_from_training_to_mesh(scene, tmp_path, capsys, flags):
    run = trained(scene, tmp_path, *flags)
    check_scores(run, "test")
    assert "Stages begin after steps 0, 3, 4" in capsys.readouterr().out
    loaded = load_checkpoint(run)
    points = torch.rand(500, 1, 3) * 2 - 1
    with torch.no_grad():
        typical = loaded.model.density(points, torch.full_like(points, 0.01)).median()
    assert extract_mesh.main(["--run", str(run), "--grid_size", "12", "--keep_unseen",
                              "--mesh_format", "glb", "--sigma_threshold", f"{typical:.4f}"]) == 0
    material = Glb(next(run.glob("mesh_*/mesh.glb")).read_bytes()).material
    assert "extensions" not in material
    assert 0.1 <= material["pbrMetallicRoughness"]["roughnessFactor"] <= 1
    assert visualize.main(["--run", str(run), "--frames", "2", "--path", "still", "--relight",
                           "light", "--visualize_components", "--visualize_depth"]) == 0
    video, = run.glob("video_still_light_*")
    frames = [iio.imread(video / "frames" / f"{kind}_0000{i}.png")
              for kind in ("direct", "albedo") for i in (0, 1)]
    assert not np.array_equal(frames[0], frames[1]) and np.array_equal(frames[2], frames[3])


def test_scoring_under_other_lights_than_in_training(scene, tmp_path, capsys,
                                                                  monkeypatch):
    run = trained(scene, tmp_path, "--no-final_eval", "--eval_every", "0", "--shade_at", "surface")
    evaluate.main(["--run", str(run), "--no-save_images"])
    evaluate.main(["--run", str(run), "--no-save_images", "--lights", "env"])
    point, env = (json.loads((run / f"eval_{name}_00000006" / "scores.json").read_text())
                  for name in ("test", "test_env"))
    assert point["psnr"] != env["psnr"] and "visibility_mae" in point
    assert "visibility_mae" not in env
    monkeypatch.setattr("sys.argv", ["x", str(run), "--device", "cpu", "--baked", "2"])
    bench_relighting.main()
    out = capsys.readouterr().out
    assert out.count("| nerv | point | 6 |") == 2
    for lights, scores in (("point", point), ("env", env)):
        assert f"| {lights} | surface | {scores['psnr']:.2f} |" in out
    assert out.count("| its geometry, baked | point | 2 |") == 2


def test_baking_trains_colours_and_keeps_geometry(scene, tmp_path):
    run = load_checkpoint(trained(scene, tmp_path, "--no-final_eval", "--eval_every", "0"))
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    rays = load_dataset(run.config, "test").image(0).rays.flatten()[:50]
    shape = render_image(run.model, rays)
    few, more = (bench_relighting.bake(run, steps)[-1] for steps in (1, 4))
    assert all(torch.equal(x, before[name]) for name, x in run.model.state_dict().items())
    assert not torch.equal(few.colours.table, more.colours.table)
    images = render_image(few, rays), render_image(more, rays)
    for image in images:
        torch.testing.assert_close(image.acc, shape.acc)
        torch.testing.assert_close(image.distance_mean, shape.distance_mean)
    assert not torch.equal(images[0].rgb, images[1].rgb)
    dark = replace(rays, lights=rays.lights.map(torch.zeros_like))
    assert torch.equal(render_image(more, dark).rgb, images[1].rgb)


def test_a_resumed_run_is_bit_identical(scene, tmp_path):
    """Also from the first stage into the last."""
    run = trained(scene, tmp_path, "--no-final_eval", "--eval_every", "0")
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped" / "checkpoint_00000006.pt").unlink()
    train.main(["--run", str(tmp_path / "stopped"), "--continue_training"])
    whole, continued = (load_checkpoint(folder) for folder in (run, tmp_path / "stopped"))
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, continued.model.state_dict()[name]), name


@pytest.mark.parametrize("flags", [
    ["--shade_at", "surface"], ["--bounce_directions", "3"], ["--march_shadows"],
    ["--lights", "env"],
])
def test_a_run_cannot_resume_with_other_shading_or_lights(run_copy, flags):
    (run_copy / "checkpoint_00000006.pt").unlink()
    with pytest.raises(UserError, match=f"{flags[0]} .* was given, but this run was started with"):
        train.main(["--run", str(run_copy), "--continue_training", *flags])


def test_a_longer_run_does_not_return_to_an_earlier_stage(run_copy, capsys):
    """Shading starts after 0.55 of all steps: six steps reach it of ten, not of eleven."""
    words = ["--run", str(run_copy), "--continue_training", "--no-final_eval"]
    with pytest.raises(UserError, match="to an earlier stage.* at most 10"):
        train.main([*words, "--max_steps", "11"])
    assert load_checkpoint(run_copy).saved_config.max_steps == 6
    train.main([*words, "--max_steps", "10"])
    assert load_checkpoint(run_copy).step == 10 and load_checkpoint(run_copy).model.is_shading()


@pytest.mark.parametrize("change", [
    lambda meta: meta.update(light_intensity=2 * meta["light_intensity"]),
    lambda meta: meta["frames"][0].update(light_loc=[[0.0, 0.0, 3.0]]),
    lambda meta: meta["frames"][0].update(light_loc=[[0, 0, 3], [0, 3, 3]],
                                          light_weights=2 * [[1, 1, 1]]),
])
def test_a_scene_with_changed_lights_is_refused(scene, run_copy, tmp_path, change):
    (run_copy / "checkpoint_00000006.pt").unlink()
    moved = tmp_path / "moved"
    shutil.copytree(scene, moved)
    for path in (moved / "train_point" / "transforms_train.json", moved / "transforms_test.json"):
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))
    words = ["--run", str(run_copy), "--scene", str(moved)]
    with pytest.raises(UserError, match="the train lights in .* are not those of the run"):
        train.main([*words, "--continue_training"])
    with pytest.raises(UserError, match="the test lights in .* are not those of the run"):
        evaluate.main(words)


def test_light_intensity_is_refused_for_environments(scene, tmp_path):
    with pytest.raises(UserError, match="--light_intensity is for .*--lights point"):
        trained(scene, tmp_path, "--lights", "env", "--light_intensity", "3")


def test_outputs_of_other_shading_have_their_own_folders(run_copy):
    words = ["--run", str(run_copy), "--device", "cpu"]
    ways = {"": [], "_surface": ["--shade_at", "surface"], "_marched": ["--march_shadows"],
            "_surface_bounce7": ["--shade_at", "surface", "--bounce_directions", "7"]}
    images = {}
    for name, flags in ways.items():
        visualize.main([*words, "--path", "still", "--frames", "1", *flags])
        video = run_copy / f"video_still{name}_00000006_1x16x16"
        images[name] = (video / "frames" / "rgb_00000.png").read_bytes()
        evaluate.main([*words, "--no-save_images", *flags])
        assert (run_copy / f"eval_test_00000006{name}" / "scores.json").exists()
    assert len(list(run_copy.glob("video_*"))) == len(list(run_copy.glob("eval_*"))) == len(ways)
    assert len(set(images.values())) == len(ways)


def test_meshes_and_videos_refuse_other_lights(run_copy):
    for script in (visualize, extract_mesh):
        with pytest.raises(UserError, match="--lights env was given, but this run was started"):
            script.main(["--run", str(run_copy), "--lights", "env"])


def test_components_need_the_shading_stage(run_copy):
    for step in (3, 6):
        (run_copy / f"checkpoint_0000000{step}.pt").unlink()
    with pytest.raises(UserError, match="before surfaces are shaded; train further, or leave"):
        visualize.main(["--run", str(run_copy), "--frames", "1", "--visualize_components"])
    assert not list(run_copy.glob("video_*"))
    for flags in (["--march_shadows"], ["--shade_at", "surface"]):
        with pytest.raises(UserError, match="before surfaces are shaded, so --shade_at"):
            evaluate.main(["--run", str(run_copy), *flags])


def bench(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["x", *map(str, words), "--device", "cpu"])
    bench_relighting.main()


def test_benchmark_rows_name_the_shading(scene, run_copy, tmp_path, monkeypatch, capsys):
    for step in (3, 6):
        (run_copy / f"checkpoint_0000000{step}.pt").unlink()
    bench(monkeypatch, run_copy, "--lights", "point", "--march_shadows")
    assert "| nerv | point | 0 | 0 | 0 | point |  |" in capsys.readouterr().out
    marched = trained(scene, tmp_path, "--march_shadows", "--no-final_eval", "--eval_every", "0")
    bench(monkeypatch, marched, "--lights", "point")
    bench(monkeypatch, marched, "--lights", "point", "--no-march_shadows")
    out = capsys.readouterr().out
    assert "| point | samples, marched |" in out and "| point | samples |" in out
    assert {p.name for p in marched.glob("bench_*")} == {
        "bench_test_00000006", "bench_test_00000006_unmarched"}


def test_the_benchmark_refuses_runs_without_lights(scene, run_copy, tmp_path, monkeypatch, capsys):
    shutil.copytree(scene, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "test_env")
    plain = ["--preset", "debug", "--device", "cpu", "--log_dir", str(tmp_path), "--max_steps", "1",
             "--eval_every", "0", "--no-final_eval", "--scene", str(tmp_path / "moved")]
    train.main([*plain, "--exp_name", "lit", "--dataset_name", "nerv", "--model", "zipnerf"])
    with pytest.raises(UserError, match="under --lights env: "):
        bench(monkeypatch, tmp_path / "lit")
    assert [p.name for p in (tmp_path / "lit").glob("bench_*")] == ["bench_test_00000001"]
    write_blender(tmp_path / "photos", num_views=2)
    train.main([*plain[:-1], str(tmp_path / "photos"), "--exp_name", "unlit"])
    with pytest.raises(UserError, match="is a run on blender, whose lights are not known"):
        bench(monkeypatch, tmp_path / "unlit")


def change_views(path):
    """Keep two views and move one."""
    meta = json.loads(path.read_text())
    meta["frames"] = meta["frames"][:2]
    meta["frames"][0]["transform_matrix"][2][3] += 0.5
    path.write_text(json.dumps(meta))


def test_views_under_other_lights_may_differ(scene, run_copy, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(scene, moved)
    change_views(moved / "test_env" / "transforms_test.json")
    words = ["--run", str(run_copy), "--scene", str(moved), "--no-save_images"]
    evaluate.main([*words, "--lights", "env"])
    scores = json.loads((run_copy / "eval_test_env_00000006" / "scores.json").read_text())
    assert len(scores["images"]) == 2
    change_views(moved / "transforms_test.json")
    with pytest.raises(UserError, match="are not those of the run"):
        evaluate.main([*words, "--lights", "env"])


def test_other_models_train_on_lit_scenes_but_cannot_relight(scene, tmp_path):
    train.main(["--preset", "debug", "--device", "cpu", "--dataset_name", "nerv", "--scene",
                str(scene), "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "2",
                "--eval_every", "0", "--no-final_eval"])
    run = str(tmp_path / "run")
    evaluate.main(["--run", run, "--no-save_images"])
    with pytest.raises(UserError, match="--relight is for --model nerv"):
        visualize.main(["--run", run, "--frames", "1", "--relight", "light"])
    with pytest.raises(UserError, match="--visualize_components is for --model nerv"):
        visualize.main(["--run", run, "--frames", "1", "--visualize_components"])


@pytest.mark.parametrize("words,message", [
    (["--model", "nerv", "--dataset_name", "blender"], "needs known lights"),
    (["--model", "mipnerf", "--visibility_loss_mult", "1"], "is for --model nerv"),
    (["--model", "nerv", "--dataset_name", "nerv", "--geometry_share", "0.9", "--visibility_share",
      "0.1"], "leave no steps"),
    (["--environment", "sky.exr"], "is for --relight environment"),
    (["--model", "nerv", "--dataset_name", "nerv", "--contraction"], "is not for --model nerv"),
    (["--model", "nerv", "--dataset_name", "nerv", "--opaque_background"], "is not for --model"),
    (["--model", "nerv", "--dataset_name", "nerv", "--ray_warp", "reciprocal", "--near", "2"],
     "divides by t"),
    (["--model", "nerv", "--dataset_name", "nerv", "--max_steps", "2"], "ends before surfaces"),
    (["--preset", "laptop", "--model", "nerv", "--geometry_share", "0.999999999",
      "--visibility_share", "0"],
     "ends before surfaces"),
    (["--preset", "laptop", "--model", "nerv", "--visibility_finest", "8"],
     "must not be above --visibility_finest"),
])
def test_contradictory_flags_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        get_config(words)
    assert error.value.code == 2 and message in capsys.readouterr().err


# Lights of videos.


def known_points():
    positions = torch.tensor([[[0.0, 0.0, 4.0]], [[4.0, 0.0, 0.0]], [[0.0, -4.0, 0.0]]])
    return point_lights(positions, torch.full((3, 1, 3), 32.0))


def test_a_light_circles_counterclockwise_at_typical_distance_and_strength():
    lights = frame_lights(known_points(), "light", 4)
    x, y, z = lights.places[:, 0].T
    torch.testing.assert_close(lights.places.norm(dim=-1), torch.full((4, 1), 4.0))
    turns = torch.atan2(y, x).rad2deg() % 360
    torch.testing.assert_close(turns, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(z, torch.full((4,), 4 * math.sin(math.radians(45))))
    torch.testing.assert_close(lights.colours, torch.full((4, 1, 3), 32.0))


def test_the_typical_light_of_environments_is_distant():
    sky = environment_lights(torch.ones(6, 12, 3))
    light = typical_light(sky.map(lambda x: x[None]))
    assert bool(light.distant.all())
    # The one light has the total radiance of a uniform sky, 4 pi.
    arriving = incident(light, ORIGIN).radiance.sum()
    assert float(arriving) == pytest.approx(3 * 4 * math.pi, rel=0.02)


def test_an_environment_rotates_once(tmp_path):
    sky = torch.zeros(4, 8, 3)
    sky[1, 3] = 5.0
    known = environment_lights(sky).map(lambda x: x[None])
    lights = frame_lights(known, "environment", 4)
    brightest = lights.places[:, 11]
    azimuth = torch.atan2(brightest[:, 1], brightest[:, 0]).rad2deg()
    torch.testing.assert_close((azimuth - azimuth[0]) % 360, torch.tensor([0.0, 90, 180, 270]),
                               atol=1e-3, rtol=0)
    assert torch.equal(frame_lights(known, "none", 3).places, known.places.expand(3, -1, -1))
    with pytest.raises(UserError, match="give a map by --environment"):
        frame_lights(known_points(), "environment", 2)


def test_padded_environments_are_environments():
    """The smaller one is padded with dark lights, which are not distant."""
    large, small = (environment_lights(torch.ones(h, 2 * h, 3)) for h in (4, 2))
    small = small.map(lambda x: torch.nn.functional.pad(x, (0, 0, 0, 24)))
    known = Lights(**{name: torch.stack([getattr(small, name), getattr(large, name)])
                      for name in ("places", "colours", "distant")})
    lights = frame_lights(known, "environment", 4)
    assert torch.equal(lights.colours, small.colours.expand(4, -1, -1))
    torch.testing.assert_close(lights.places[2, :8, :2], -small.places[:8, :2])


def test_a_fine_environment_map_is_averaged(tmp_path):
    lit_scene.write_exr(tmp_path / "sky.exr", np.full((64, 128, 3), 2.0))
    lights = frame_lights(known_points(), "environment", 2, str(tmp_path / "sky.exr"))
    assert lights.places.shape == (2, 16 * 32, 3)
    torch.testing.assert_close(lights.colours[0].sum(0), torch.full((3,), 8 * math.pi), rtol=0.01,
                               atol=0)
    for path in (tmp_path, tmp_path / "none.exr", tmp_path / "none.png"):
        with pytest.raises(UserError, match=f"--environment {path} is not a file; give"):
            frame_lights(known_points(), "environment", 2, str(path))
