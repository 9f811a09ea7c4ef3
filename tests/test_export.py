"""Export as users run it: every format of a trained run, and what is refused."""

import json

import pycolmap
import pytest
import trimesh

from tests.processes import run_script
from tests.scenes import write_blender

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


def test_points_are_written_or_the_reason_why_not(runs):
    done = export(runs / "zipnerf", "--format", "ply", "--num_points", "500")
    path = runs / "zipnerf" / "points.ply"
    if done.returncode == 2:
        assert "no ray of the training views hits a surface" in done.stderr
    else:
        assert done.returncode == 0 and len(trimesh.load(path).vertices) > 0
