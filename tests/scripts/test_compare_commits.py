"""The comparison of two checkouts reports all changed numbers and no others."""

import json
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import trimesh

from scripts import compare_commits
from scripts.compare_commits import (
    CASES,
    Checkout,
    CommandFailed,
    compare,
    describe_difference,
    find_differences,
    read_files,
    read_run,
    summarize,
)


def write_run(folder, loss=0.5, weight=1.0, near=2.0, psnr=20.0, pixel=7, vertex=0.0, seconds=1.0):
    """A run folder with one of each quantity; returns the folder."""
    (folder / "eval_test_00000002").mkdir(parents=True)
    (folder / "mesh_00000002_8").mkdir()
    lines = [{"step": step, "seconds": seconds, "rays_per_second": 9.0, "loss/total": value}
             for step, value in ((1, 0.6), (2, loss))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, value in ((0, 0.0), (2, weight)):
        content = {"model": {"layer.weight": torch.tensor([1.0, value])},
                   "scene": {"train": {"near": torch.tensor(near), "names": ["a"]}}}
        torch.save(content, folder / f"checkpoint_{step:08d}.pt")
    scores = {"psnr": psnr, "ssim": 0.5, "scales": {}, "images": [{"name": "a", "psnr": psnr}],
              "commit": str(seconds)}
    (folder / "eval_test_00000002" / "scores.json").write_text(json.dumps(scores))
    image = np.full((2, 3, 3), 7, dtype=np.uint8)
    image[1, 2, 0] = pixel
    imageio.imwrite(folder / "eval_test_00000002" / "000_rgb.png", image)
    vertices = [[vertex, 0, 0], [1, 0, 0], [0, 1, 0]]
    mesh = trimesh.Trimesh(vertices, [[0, 1, 2]], process=False, vertex_colors=[[1, 2, 3]] * 3)
    mesh.export(folder / "mesh_00000002_8" / "mesh.ply")
    (folder / "mesh_00000002_8" / "mesh.json").write_text(json.dumps({"vertices": 3}))
    return folder


def test_runs_that_differ_only_in_times_are_equal(tmp_path):
    old = read_run(write_run(tmp_path / "old"))
    new = read_run(write_run(tmp_path / "new", seconds=3.0))
    assert find_differences(old, new) == {}
    kinds = {name.split("/")[0] for name in old}
    assert kinds == {"scene", "losses", "weights", "scores", "images", "mesh"}


@pytest.mark.parametrize(("change", "name"), [
    ({"loss": np.nextafter(0.5, 1)}, "losses/0002/loss/total"),
    ({"weight": float(np.nextafter(np.float32(1), np.float32(2)))}, "weights/layer.weight"),
    ({"near": 2.5}, "scene/train/near"),
    ({"psnr": 20.000001}, "scores/eval_test_00000002/psnr"),
    ({"pixel": 8}, "images/eval_test_00000002/000_rgb.png"),
    ({"vertex": 1e-6}, "mesh/mesh_00000002_8/vertices"),
])
def test_a_changed_number_is_reported(tmp_path, change, name):
    old = read_run(write_run(tmp_path / "old"))
    new = read_run(write_run(tmp_path / "new", **change))
    differences = find_differences(old, new)
    assert next(iter(differences)) == name
    line = summarize(differences, len(old))
    assert line.startswith(f"first {name}:") and f"of {len(old)} quantities" in line
    assert find_differences(old, new, ignore=[name]) == {
        key: words for key, words in differences.items() if name not in key}


def test_missing_quantities_are_reported_on_both_sides():
    differences = find_differences({"a": 1, "b": 2}, {"b": 2, "c": 3})
    assert differences == {"a": "only in the old", "c": "only in the new"}


def test_differences_of_values_in_words():
    assert describe_difference(float("nan"), float("nan")) is None
    assert describe_difference(0.5, 0.75) == "0.5 became 0.75 (by 0.25)"
    assert describe_difference(1, 1.0) == "1 became 1.0 (by 0)"
    assert describe_difference(True, False) == "True became False"
    assert describe_difference(None, "a") == "None became 'a'"
    one = torch.tensor([1.0, float("nan"), 3.0])
    assert describe_difference(one, one.clone()) is None
    assert describe_difference(one, one + 0.5) == "2 of 3 values, by up to 0.5"
    assert describe_difference(one, one.double()) == "float32 [3] became float64 [3]"
    assert describe_difference(one, one[:2]) == "float32 [3] became float32 [2]"
    pixels = torch.tensor([255, 0], dtype=torch.uint8)
    assert describe_difference(pixels, pixels.flip(0)) == "2 of 2 values, by up to 255"
    masks = torch.tensor([True, False])
    assert describe_difference(masks, ~masks) == "2 of 2 values, by up to 1"


def test_files_are_compared_by_their_bytes(tmp_path):
    for side, text in (("old", "abc"), ("new", "abd")):
        (tmp_path / side / "sub").mkdir(parents=True)
        (tmp_path / side / "sub" / "a.txt").write_text(text)
    differences = find_differences(read_files(tmp_path / "old"), read_files(tmp_path / "new"))
    assert differences == {"files/sub/a.txt": "1 of 3 values, by up to 1"}


def test_cases_have_names_of_their_own_and_cover_every_model_and_dataset():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.dataset for case in CASES} == set(compare_commits.SCENE_FOLDERS)
    for model in ("mipnerf", "mipnerf360", "zipnerf"):
        found = {case.dataset for case in CASES if case.name.startswith(f"debug/{model}/")}
        assert found == set(compare_commits.SCENE_FOLDERS)


class FakeCheckout(Checkout):
    """A checkout whose trainings are a write of `values`."""

    def __init__(self, folder, work, fails=False, **values):
        folder.mkdir()
        (folder / "train.py").touch()
        super().__init__(folder, work)
        self.values, self.fails, self.count = values, fails, 0
        self.commit, self.has_sized_presets = "abc", False

    def make_scene(self, dataset, data_dir):
        pass

    def run_commands(self, case, data_dir, folder):
        self.count += 1
        if self.fails:
            raise CommandFailed("train.py: no such flag")
        write_run(Path(folder) / "run", **self.values)


def test_old_outputs_are_kept_and_new_ones_made_again(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    old = FakeCheckout(tmp_path / "old", work)
    new = FakeCheckout(tmp_path / "new", work)
    changed = FakeCheckout(tmp_path / "changed", work, loss=0.4)
    broken = FakeCheckout(tmp_path / "broken", work, fails=True)
    case, places = CASES[0], (tmp_path, tmp_path)
    for _ in range(2):
        is_equal, line = compare(case, old, new, places, ())
        assert is_equal and line.startswith(f"equal    {case.name}")
    assert (old.count, new.count) == (1, 2)
    is_equal, line = compare(case, old, changed, places, ())
    assert not is_equal and "losses/0002/loss/total: 0.5 became 0.4 (by 0.1)" in line
    is_equal, line = compare(case, old, broken, places, ())
    assert not is_equal and line.endswith("train.py: no such flag")
    compare(replace(case, old=f"{case.old} --hidden 7"), old, new, places, ())
    assert old.count == 2, "other flags are another run"
    old.commit = None
    compare(case, old, new, places, ())
    assert old.count == 3, "with uncommitted changes nothing is kept"


def test_flags_follow_the_preset_names_of_a_checkout(tmp_path):
    checkout = FakeCheckout(tmp_path / "old", tmp_path)
    case = next(case for case in CASES if case.name == "laptop/zipnerf/blender")
    assert "--preset demozip" in checkout.train_flags(case)
    checkout.has_sized_presets = True
    assert "--preset laptop --model zipnerf" in checkout.train_flags(case)
