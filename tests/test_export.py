"""Export as users run it: every format of a trained run, and what is refused."""

import json

import numpy as np
import pycolmap
import pytest
import trimesh

import checkpoint
import export as export_module
from tests.analytic import AnalyticModel, ball
from tests.processes import run_script
from tests.scenes import write_blender
from tests.test_extract_mesh import analytic_run, colour_by_side

DEBUG = ("--preset", "debug", "--dataset_name", "blender", "--device", "cpu", "--near", "2",
         "--far", "6", "--max_steps", "12", "--eval_every", "0", "--no-final_eval")
SINGLE = ("--num_multisamples", "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of a Zip-NeRF and of a mip-NeRF."""
    folder = tmp_path_factory.mktemp("export")
    write_blender(folder / "scene", num_views=4, size=(24, 20))
    for model in ("zipnerf", "mipnerf"):
        done = run_script("train.py", *DEBUG, "--scene", folder / "scene", "--model", model,
                          "--log_dir", folder, "--exp_name", model,
                          *(SINGLE if model == "zipnerf" else ()))
        assert done.returncode == 0, done.stderr
    return folder


def export(run, *flags):
    return run_script("export.py", "--run", run, *flags)


def test_a_page_is_one_file_in_the_run_folder(runs):
    done = export(runs / "zipnerf")
    assert done.returncode == 0, done.stderr
    page = runs / "zipnerf" / "page.html"
    assert f"Page: {page} (open it in a browser)" in done.stdout
    text = page.read_text()
    assert text.startswith("<!doctype html>") and "http://" not in text and "https://" not in text
    header = text.split('id="header">')[1].split("</script>")[0]
    assert json.loads(header)["grid"] > 0


def test_a_page_of_networks_is_refused(runs):
    done = export(runs / "mipnerf")
    assert done.returncode == 2 and not (runs / "mipnerf" / "page.html").exists()
    assert "the page renders hash grids alone" in done.stderr and "Traceback" not in done.stderr


def test_cameras_are_written_for_both_programs(runs):
    done = export(runs / "mipnerf", "--format", "cameras")
    assert done.returncode == 0, done.stderr
    folder = runs / "mipnerf" / "cameras"
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    names = {image.name for image in model.images.values()}
    assert len(names) == len(frames) == 8 and {frame["file_path"] for frame in frames} == names


def test_points_of_a_ball_are_written(monkeypatch, tmp_path):
    write_blender(tmp_path / "scene", num_views=6, size=(48, 40))
    run = analytic_run(tmp_path / "scene", AnalyticModel(ball([0.2, 0, 0], 0.7), colour_by_side))
    run.path.parent.mkdir()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda path, device: run)
    words = ["--run", "unused", "--format", "ply", "--num_points", "3000"]
    assert export_module.main(words) == 0
    vertices = trimesh.load(run.path.parent / "points.ply").vertices
    radii = np.linalg.norm(vertices - [0.2, 0, 0], axis=1)
    assert len(radii) > 300 and abs(np.median(radii) - 0.7) < 0.01
