"""The viewer without a browser: markers, photographs, key frames, and the command's messages."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import view
from cameras.keyframes import read_path
from config import get_config
from datasets import load_dataset
from runtime.errors import UserError
from tests.scenes import look_at
from tests.viewer.test_refining import shot
from viewer import markers
from viewer.app import Viewer, open_server
from viewer.loaded_run import load_run
from viewer.markers import MAX_CAMERAS, box_edges, camera_shot, render_thumbnail, shown_cameras
from viewer.photographs import Photographs
from viewer.poses import to_viser


@pytest.fixture
def viewer(trained, tmp_path, monkeypatch):
    """A running viewer in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(markers, "THUMBNAIL_SIDE", 12)
    config = get_config(["--run", str(trained), "--device", "cpu"], "view")
    viewer = Viewer(config, load_run(config), "127.0.0.1", 18_080)
    yield viewer
    viewer.stop()


class Client:
    """A browser's handle, as far as the film needs it."""

    def __init__(self):
        self.notes, self.files = [], {}

    def look_from(self, position):
        wxyz, position = to_viser(look_at(position)[:3])
        self.camera = SimpleNamespace(wxyz=wxyz, position=position, fov=0.7)
        return self

    def add_notification(self, title, body, **options):
        self.notes.append(body)

    def send_file_download(self, name, content):
        self.files[name] = content


def test_the_panel_begins_with_what_the_run_is(viewer):
    assert viewer.panel.headline.content.startswith("**zipnerf** of *scene*  \nstep 40 of 40")
    assert viewer.panel.picture_size((1280, 960)) == (640, 480)
    assert viewer.panel.picture_size((300, 200)) == (300, 200)
    assert len(viewer.markers.frustums) == 5
    assert viewer.server.get_host() == "127.0.0.1"


def test_key_frames_are_added_ordered_replaced_deleted_saved_and_loaded(viewer, tmp_path):
    film, client = viewer.film, Client()
    for x in (1.0, 2.0, 3.0):
        film.add(client.look_from([x, 1, 1]))
    places = [[round(x) for x in film.key_frames.camtoworlds[:, 0, 3]]]
    for action in ("Earlier", "Earlier", "Later", "Delete"):
        film.change(action, client)
        places.append([round(x) for x in film.key_frames.camtoworlds[:, 0, 3]])
    assert places == [[1, 2, 3], [1, 3, 2], [3, 1, 2], [1, 3, 2], [1, 2]]
    film.change("Replace", client.look_from([7.0, 1, 1]))
    assert film.key_frames.camtoworlds[:, 0, 3].round().tolist() == [1, 7]
    film.closed.value = True
    film._set(film.key_frames)
    film.save(client)
    saved = read_path(tmp_path / "path.json", torch.eye(4))
    assert saved.closed and np.allclose(saved.camtoworlds, film.key_frames.camtoworlds)
    assert f"--run {viewer.loaded.run.path.parent} --path path.json" in film.command.content
    film.download(client)
    assert json.loads(client.files["path.json"])["closed"]
    film._set(None)
    film.load("mine.json", client.files["path.json"])
    assert len(film.key_frames) == 2 and film.closed.value


def test_files_that_are_no_films_are_neither_overwritten_nor_loaded(viewer, tmp_path):
    film, client = viewer.film, Client()
    with pytest.raises(UserError, match="needs two key frames"):
        film.save(client)
    for x in (1.0, 2.0):
        film.add(client.look_from([x, 1, 1]))
    (tmp_path / "config.json").write_text("{}")
    for name, message in (("../a.json", "not the name of a file"), ("a.txt", "ends with .json"),
                          ("config.json", "has no list key_frames")):
        film.file.value = name
        film._reporting(film.save, client)
        assert message in client.notes[-1]
    assert (tmp_path / "config.json").read_text() == "{}"
    with pytest.raises(UserError, match="mine.json is not valid JSON"):
        film.load("mine.json", b"\xff")


def test_thumbnails_are_small_renderings_whose_points_lie_on_the_surface(loaded):
    thumbnail = render_thumbnail(loaded, 0, 50)
    assert thumbnail.image.shape == (64, 96, 3) and len(thumbnail.points) <= 110
    assert len(thumbnail.points) == len(thumbnail.colours)
    wanted = camera_shot(loaded, 0, 96)
    position = wanted.camtoworld[:, 3]
    pose = np.concatenate([look_at(position)[:3, :3], position[:, None]], axis=1)
    assert np.allclose(pose, wanted.camtoworld, atol=1e-5)
    assert shown_cameras(3) == [0, 1, 2] and len(shown_cameras(1000)) == MAX_CAMERAS


def test_a_box_has_twelve_edges_also_in_the_world_of_ndc():
    box = torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    edges = box_edges(box, None)
    lengths = np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1)
    assert sorted(lengths) == [1] * 4 + [2] * 4 + [3] * 4
    in_ndc = box_edges(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), (10.0, 20.0, 20.0))
    assert in_ndc.shape == (12, 2, 3) and np.isfinite(in_ndc).all()
    assert in_ndc[..., 2].max() == pytest.approx(-1) and in_ndc[..., 2].min() < -10


def test_a_photograph_lies_over_its_rendering_pixel_by_pixel(loaded):
    photographs = Photographs(loaded)
    wanted = camera_shot(loaded, 1, 24)
    warped, seen = photographs.warped(loaded, wanted, 1)
    truth = load_dataset(loaded.run.config, "train", read_pixels=False).image(1).rgb.numpy()
    assert seen.all() and np.abs(warped / 255 - truth).max() < 0.02
    image = np.zeros((16, 24, 3), dtype=np.uint8)
    half = photographs.overlay(loaded, image, wanted, 1, 0.5)
    assert np.array_equal(half[:, :11], warped[:, :11]) and not half[:, 13:].any()
    assert photographs.overlay(loaded, image, wanted, 1, 0.0) is image


def test_photographs_that_are_gone_are_a_sentence(loaded, tmp_path):
    from dataclasses import replace

    config = loaded.run.config.replace(scene=str(tmp_path / "gone"))
    photographs = Photographs(replace(loaded, run=replace(loaded.run, config=config)))
    assert photographs.dataset is None and "gone" in photographs.missing


def test_an_exposure_is_that_of_its_photograph(tmp_path):
    import train
    from tests.scenes import write_blender
    from viewer.refining import Speed, refine

    write_blender(tmp_path / "s", num_views=3)
    train.main(["--preset", "debug", "--device", "cpu", "--model", "zipnerf",
                "--num_multisamples", "1", "--glo_features", "4", "--scene", str(tmp_path / "s"),
                "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "20", "--eval_every", "0", "--no-final_eval"])
    fast, exact = (load_run(get_config(["--run", str(tmp_path / "run"), "--device", "cpu", *flags],
                                       "view")) for flags in ([], ["--exact"]))
    with torch.no_grad():
        for run in (fast, exact):
            run.run.model.embeddings.weight[1] *= 30
    assert fast.renderer.marcher is not None and exact.renderer.marcher is None
    images = {}
    for name, run in (("fast", fast), ("exact", exact)):
        for appearance in (None, 1):
            *_, picture = refine(run, shot(width=24, height=18, appearance=appearance), Speed())
            images[name, appearance] = picture.image.astype(int)
    # Without much training the two paths differ, but the exposure changes them alike.
    changes = [images[name, 1] - images[name, None] for name in ("fast", "exact")]
    assert all(np.abs(change).mean() > 3 for change in changes)
    assert np.corrcoef(*(change.ravel() for change in changes))[0, 1] > 0.7


# The command.


def test_the_address_names_the_tunnel_for_remote_machines():
    text = view.address("127.0.0.1", 8081)
    assert "http://localhost:8081" in text and "ssh -L 8081:localhost:8081" in text
    assert "ssh" not in view.address("0.0.0.0", 8081)
    assert "http://10.0.0.7:8081" in view.address("10.0.0.7", 8081)


def test_a_missing_package_and_an_impossible_address_are_sentences(monkeypatch):
    with pytest.raises(UserError, match="--host 203.0.113.1 --port 8080 cannot be used"):
        open_server("203.0.113.1", 8080)
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError, match=r"needs the package viser; install it by `pip install"):
        open_server("127.0.0.1", 8080)
