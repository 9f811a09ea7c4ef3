"""Checkpoints that somebody edited, of other programs, or that are no files: one sentence each."""

import os
import shutil
import zipfile

import pytest
import torch

import train
from checkpoint import list_checkpoints, load_checkpoint, open_run
from config import get_config
from runtime.errors import UserError
from tests.scenes import write_blender

TINY = ["--preset", "debug", "--device", "cpu", "--precision", "fp32", "--eval_every", "0",
        "--no-final_eval", "--batch_size", "16", "--exp_name", "run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a scene, a run of two steps, and the content of its last checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    write_blender(folder / "scene", num_views=2)
    train.main(words(folder, "--max_steps", "2", "--keep_checkpoints", "1"))
    return folder


def words(folder, *more):
    return [*TINY, "--scene", str(folder / "scene"), "--log_dir", str(folder), *more]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that folder that a test may damage."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder, change):
    """Save the run's checkpoint as `change(content)` leaves or returns it; returns its path."""
    [path] = list_checkpoints(folder / "run")
    content = torch.load(path, weights_only=True)
    changed = change(content)
    torch.save(content if changed is None else changed, path)
    return path


def fault_of(path):
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


WRONG = {"null": None, "text": "x", "list": [1], "tensor": torch.ones(2), "fraction": 1.5,
         "nan": float("nan"), "true": True, "empty": {}, "negative": -5, "huge": 10**30}


@pytest.mark.parametrize("key,value", [
    (key, value) for key in ("format", "step", "config", "scene", "model", "optimizer")
    for value in WRONG if (key, value) not in (("scene", "empty"), ("config", "empty"))])
def test_parts_of_another_type_are_refused(key, value, run):
    assert "checkpoint_00000002.pt" in fault_of(
        edit(run, lambda content: content.update({key: WRONG[value]})))


@pytest.mark.parametrize("key", ["format", "step", "config", "scene", "model", "optimizer"])
def test_missing_parts_are_refused(key, run):
    path = edit(run, lambda content: {k: v for k, v in content.items() if k != key})
    assert "is not a checkpoint of this project" in fault_of(path)


@pytest.mark.parametrize("flag,value", [
    ("hidden", "a"), ("hidden", -3), ("hidden", 10**30), ("hidden", 32), ("depth", None),
    ("model", "foo"), ("model", 3), ("model", "mipnerf360"), ("dataset_name", "foo"),
    ("num_samples", "x"), ("num_levels", 3.5), ("lr_init", "x"), ("lr_init", -1.0),
    ("lr_init", float("nan")), ("batch_size", None), ("precision", "fp8"), ("max_steps", 1),
    ("bg_range", 3), ("bg_range", (1.0,)), ("scales", ()), ("near", [1]), ("scene", "a\0b"),
])
def test_flags_that_no_command_line_would_have_are_refused(flag, value, run):
    fault_of(edit(run, lambda content: content["config"].update({flag: value})))


@pytest.mark.parametrize("value", [
    3, None, "x", torch.ones(1), torch.full((2, 3, 4), float("nan")), torch.ones(2, 3, 4).double(),
])
@pytest.mark.parametrize("field", ["camtoworlds", "pixtocams", "sizes"])
def test_other_cameras_are_refused(field, value, run):
    path = edit(run, lambda c: c["scene"]["train"]["cameras"].update({field: value}))
    assert "holds no train scene that fits" in fault_of(path)


@pytest.mark.parametrize("change", [
    {"cameras": 3}, {"cameras": None}, {"names": 3}, {"names": ("a",)}, {"extra": 3},
    {"offsets": torch.arange(3)}, {"box": "x"}, {"box": None}, {"box": torch.ones(2)},
    {"box": torch.full((2, 3), float("nan"))}, {"world_to_scene": torch.eye(3)},
    {"background": None}, {"lights": 3},
])
def test_other_scenes_are_refused(change, run):
    path = edit(run, lambda content: content["scene"]["train"].update(change))
    assert "holds no train scene that fits" in fault_of(path)


@pytest.mark.parametrize("near,far", [(0.0, 0.0), (-1.0, 2.0), (3.0, 2.0), (0.0, -1.0)])
def test_other_ranges_are_refused(near, far, run):
    path = edit(run, lambda c: c["scene"]["train"]["cameras"].update(
        near=torch.full((2,), near), far=torch.full((2,), far)))
    assert "near and far that are not a range" in fault_of(path)


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(name, run, alarm):
    (run / "run" / name).unlink(missing_ok=True)
    os.mkfifo(run / "run" / name)
    with pytest.raises((UserError, OSError), match=name):
        train.main(words(run, "--max_steps", "3", "--continue_training"))


def test_a_run_without_training_cameras_is_not_rendered(run):
    edit(run, lambda content: content["scene"].pop("train") and None)
    with pytest.raises(UserError, match="holds no training cameras"):
        open_run(get_config(["--run", str(run / "run")]))


def first_state(content):
    return content["optimizer"]["state"][0]


@pytest.mark.parametrize("change", [
    lambda c: first_state(c).update(exp_avg=torch.ones(1)),
    lambda c: first_state(c).update(exp_avg="x"),
    lambda c: first_state(c).update(exp_avg_sq=None),
    lambda c: c["optimizer"]["state"].update({0: {"step": torch.tensor(2.0)}}),
    lambda c: first_state(c).update(step=torch.ones(5)),
    lambda c: first_state(c).update(step="x"),
    lambda c: first_state(c).update(step=torch.tensor(float("nan"))),
    lambda c: first_state(c).update(exp_avg=first_state(c)["exp_avg"].int()),
    lambda c: c["optimizer"].update(state={}),
    lambda c: c["optimizer"].update(state=3),
    lambda c: c["optimizer"].update(param_groups=3),
    lambda c: c["optimizer"]["param_groups"].append(c["optimizer"]["param_groups"][0]),
    lambda c: c["optimizer"]["param_groups"][0].update(params=[0]),
])
def test_a_training_does_not_go_on_with_the_optimizer_of_another(change, run):
    """Once a state of another shape ended the process with a segmentation fault."""
    edit(run, change)
    before = {path.name: path.read_bytes() for path in (run / "run").iterdir()}
    with pytest.raises(UserError, match="holds no optimizer that fits"):
        train.main(words(run, "--max_steps", "3", "--continue_training"))
    assert {path.name: path.read_bytes() for path in (run / "run").iterdir()} == before


def test_rates_and_options_come_from_the_config(run):
    edit(run, lambda c: c["optimizer"]["param_groups"][0].update(lr="x", betas=None, eps=1e9))
    train.main(words(run, "--max_steps", "3", "--continue_training"))
    [path] = list_checkpoints(run / "run")[:1]
    assert load_checkpoint(path).optimizer["param_groups"][0]["eps"] == 1e-8


@pytest.mark.parametrize("change", [
    lambda c: c["model"].update({next(iter(c["model"])): torch.ones(1)}),
    lambda c: c["model"].update({next(iter(c["model"])): "x"}),
    lambda c: c["model"].update({k: v * float("nan") for k, v in c["model"].items()}),
    lambda c: c["model"].update({k: v.to(torch.complex64) for k, v in c["model"].items()}),
    lambda c: c["model"].update(extra=torch.ones(1)), lambda c: c["model"].clear(),
    lambda c: c.update(refinement=3), lambda c: c.update(refinement={}),
    lambda c: [1], lambda c: {"state_dict": {}},
])
def test_other_models_are_refused(change, run):
    fault_of(edit(run, change))


@pytest.mark.parametrize("make,message", [
    (os.mkfifo, "a named pipe"), (lambda path: path.mkdir(), ""),
    (lambda path: path.symlink_to("/dev/zero"), "a device"),
    (lambda path: path.write_text("x"), "not a complete checkpoint"),
    (lambda path: path.touch(), "not a complete checkpoint"),
])
def test_what_is_no_file_is_refused_at_once(make, message, run, alarm):
    [path] = list_checkpoints(run / "run")
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)
    with pytest.raises(UserError, match="holds no valid checkpoint"):
        load_checkpoint(run / "run")


def test_compressed_archives_are_not_unpacked(run):
    """A few bytes of an archive could hold any number of weights."""
    [path] = list_checkpoints(run / "run")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert "packed" in fault_of(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_code_in_a_checkpoint_does_not_run(run, monkeypatch):
    monkeypatch.chdir(run)
    assert "not a complete checkpoint" in fault_of(
        edit(run, lambda content: content.update(model=Evil())))
    assert not (run / "evil").exists()
