"""Reports on scenes of every format, and the positions of cameras and points in the plot."""

import json
import math
import re

import numpy as np
import pytest
import torch

from capture import report
from config import default_config
from datasets import DATASETS
from loaders.lenses import pixtocam
from runtime.errors import UserError
from scripts import prepare_capture
from structures import Cameras
from tests.scenes import (
    WRITERS,
    look_at,
    write_blender,
    write_colmap,
    write_llff,
    write_nerfstudio,
)


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("name", DATASETS)
def test_check_reports_on_every_format_and_changes_no_file(tmp_path, capsys, name):
    folder = tmp_path / "scene"
    WRITERS[name](folder)
    before = files_of(tmp_path)
    assert prepare_capture.main(["--check", str(folder)]) == 0
    out = capsys.readouterr().out
    factor = {"colmap": 4, "llff": 4}.get(name, 1)
    assert f"scene ({name}, --factor {factor}): " in out
    for fact in ("training and", "test", "12x8", "focal length", "units? of the files", "--path"):
        assert re.search(fact, out), fact
    assert files_of(tmp_path) == before


def test_the_numbers_match_the_files(tmp_path):
    """A nerfstudio capture: 9 views, every eighth held out, no points."""
    write_nerfstudio(tmp_path / "s")
    found = report.examine_scene(report.scene_config(tmp_path / "s"))
    meta = json.loads((tmp_path / "s" / "transforms.json").read_text())
    positions = np.array([f["transform_matrix"] for f in meta["frames"]])[:, :3, 3]
    _, _, axes = np.linalg.svd(positions - positions.mean(axis=0))
    along = np.abs((positions - positions.mean(axis=0)) @ axes.T)
    assert found.statistics["scale"] == pytest.approx(1 / along.max(), rel=1e-5)
    assert found.statistics["views"] == {"train": 7, "val": 2, "test": 2}
    assert (found.statistics["points"], found.statistics["reprojection_error"]) == (0, None)
    assert "7 training and 2 test views of 12x8 pixels." in found.lines[0]
    assert "unknown reprojection error" in found.lines[2]
    train, test = (np.abs(found.image.astype(int) - colour).sum(axis=-1) < 60
                   for colour in (report.TRAIN, report.TEST))
    assert train.sum() > 2 * test.sum() > 0
    near, far, scale = (found.statistics[k] for k in ("near", "far", "scale"))
    assert f"{near / scale:.3g} to {far / scale:.3g} units of the files" in found.lines[3]


def test_the_reprojection_error_is_the_mean_over_the_points(tmp_path):
    import pycolmap

    write_colmap(tmp_path / "s")
    config = report.scene_config(tmp_path / "s")
    path = tmp_path / "s" / "sparse" / "0"
    model = pycolmap.Reconstruction(str(path))
    points = sorted(model.points3D)
    for i, point in enumerate(points):
        model.points3D[point].error = [-1, 0.5, 0.7][i % 3]  # -1: unknown
    model.write(str(path))
    statistics = report.examine_scene(config).statistics
    known = np.resize([-1, 0.5, 0.7], len(points))
    assert statistics["reprojection_error"] == pytest.approx(known[known >= 0].mean())
    assert statistics["points"] == len(points) > 2
    for point in points:
        model.points3D[point].error = -1
    model.write(str(path))
    assert report.examine_scene(config).statistics["reprojection_error"] is None


def cameras_at(positions):
    poses = torch.tensor(np.stack([look_at(place)[:3] for place in positions]), dtype=torch.float32)
    count = len(poses)
    inverse = torch.tensor(pixtocam(15.0, 15.0, 12, 8), dtype=torch.float32)
    return Cameras(camtoworlds=poses, pixtocams=inverse.expand(count, 3, 3), near=1.0, far=9.0,
                   sizes=torch.tensor([[12, 8]]).expand(count, 2))


def centroid(panel, colour):
    """The mean (x, y) of the pixels near a colour, excluding title and ruler."""
    near = np.abs(panel.astype(int) - colour).sum(axis=-1) < 60
    near[:30], near[-40:] = False, False
    y, x = np.nonzero(near)
    return np.array([x.mean(), y.mean()])


def test_the_plot_shows_cameras_and_points_at_their_positions():
    """Cameras and a cloud: from above they are arranged as in the world, from the side the higher
    camera is higher, and lengths match the ruler."""
    angles = np.radians([0, 120, 240])
    positions = np.stack([3 * np.cos(angles), 3 * np.sin(angles), [1.0, 1.0, 1.0]], axis=-1)
    positions = np.concatenate([positions, [[0.0, 3.0, 3.0]]])
    points = np.random.default_rng(0).normal(0, 0.05, (400, 3)) - [0, 0, 1]
    is_test = np.array([False, False, False, True])
    image = report.plot_cameras(cameras_at(positions), is_test, points, scale=1.0)
    side = report.SIDE
    assert image.shape == (side, 2 * side, 3) and image.dtype == np.uint8
    above, beside = image[:, :side], image[:, side:]
    cloud, test = (centroid(above, c) for c in (report.POINT, report.TEST))
    # The cloud is below the origin, the test camera 3 away from it.
    low, high = (centroid(beside, c) for c in (report.POINT, report.TEST))
    pixels_per_unit = (low[1] - high[1]) / 4
    # The pyramid of a camera extends from its position by a tenth of half the plot's width.
    assert np.linalg.norm(test - cloud) == pytest.approx(3 * pixels_per_unit, rel=0.15)
    ruler = (beside[-12] < 9).all(axis=-1).sum()
    assert ruler == pytest.approx(pixels_per_unit, rel=0.15)
    train = centroid(above, report.TRAIN)  # Three cameras evenly around the cloud.
    assert np.linalg.norm(train - cloud) < 0.3 * pixels_per_unit


@pytest.mark.parametrize("positions,points", [
    ([[0, 0, 4]], 0), ([[3, 0, 1], [3, 0, 1]], 0), ([[3, 0, 1], [0, 3, 1]], 1),
    ([[3, 0, 1], [0, 3, 1], [1e6, 0, 1]], 50),
])
def test_few_and_outlying_cameras_are_drawn(positions, points):
    cameras = cameras_at([[x + 1e-3, y, z] for x, y, z in positions])
    image = report.plot_cameras(cameras, np.zeros(len(positions), dtype=bool),
                                np.random.default_rng(0).normal(size=(points, 3)), scale=0.1)
    blue = np.abs(image.astype(int) - report.TRAIN).sum(axis=-1) < 60
    assert blue.any()


@pytest.mark.parametrize("make,complaint", [
    (lambda folder: None, "is not a folder"),
    (lambda folder: folder.mkdir(), "holds none of metadata.json, transforms_train.json"),
])
def test_a_folder_without_a_scene_is_an_error(tmp_path, make, complaint):
    make(tmp_path / "s")
    with pytest.raises(UserError, match=complaint):
        report.scene_config(tmp_path / "s")


def test_the_finest_images_are_the_default_and_flags_override_it(tmp_path):
    write_llff(tmp_path / "s")
    (tmp_path / "s" / "images_2").mkdir()
    assert report.scene_config(tmp_path / "s").factor == 2
    assert report.scene_config(tmp_path / "s", factor=4).factor == 4
    write_nerfstudio(tmp_path / "s2")
    write_blender(tmp_path / "s2b")
    for file in (tmp_path / "s2b").iterdir():
        file.rename(tmp_path / "s2" / file.name)
    assert report.scene_config(tmp_path / "s2").dataset_name == "blender"
    assert report.scene_config(tmp_path / "s2", "nerfstudio").dataset_name == "nerfstudio"
    assert default_config().dataset_name == "blender"


def test_the_field_of_view_is_that_of_the_lens():
    line = report.lens_line(cameras_at([[3, 0, 1], [0, 3, 1]]))
    assert line == (f"Lenses: pinhole, focal lengths 15.0 pixels, "
                    f"{math.degrees(2 * math.atan(6 / 15)):.0f} degrees wide.")
