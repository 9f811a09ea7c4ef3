"""Tables of results: rows of real trainings, read back; seeds; what is reused."""

import json
import statistics
from pathlib import Path

import pytest

import evaluate
import export
import train
from runtime.errors import UserError
from scripts import benchmark, kill_loop, results
from tests.scenes import write_blender

TINY = ("--max_steps 3 --batch_size 16 --num_samples 4 --hidden 8 --depth 1 --eval_every 0 "
        "--log_every 1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_blender(folder / "data" / "nerf_synthetic" / "demo", num_views=2)
    return folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Commands that are not killed run without starting Python anew."""
    mains = {"train.py": train.main, "evaluate.py": evaluate.main, "export.py": export.main}
    for script in (benchmark, kill_loop):
        monkeypatch.setattr(script, "run_command", lambda words, output: mains[
            Path(words[1]).name](list(map(str, words[2:]))))


def words(folder, *more):
    return [*more, "--models", "mipnerf", "--data_dir", str(folder / "data"), "--device", "cpu",
            "--log_dir", str(folder / "log"), f"--flags={TINY}"]


def rows(text):
    text = text[text.index("| ---"):]
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("| ")][1:]


def test_a_table_trains_scores_and_reuses_its_runs(folders, capsys):
    flags = words(folders, "--table", "precision", "--seeds", "0", "1")
    assert results.main(flags) == 0
    first = rows(capsys.readouterr().out)
    assert [row[:2] for row in first] == [["mip-NeRF", "fp32"], ["mip-NeRF", "bf16"]]
    for row in first:
        scores = [json.loads(path.read_text()) for path in sorted((folders / "log").glob(
            f"demo_mipnerf_{row[1]}_seed*/eval_test_00000003/scores.json"))]
        psnrs = [score["psnr"] for score in scores]
        assert len(psnrs) == 2 and psnrs[0] != psnrs[1]
        deviation = abs(psnrs[0] - psnrs[1]) / 2**0.5
        assert row[2] == f"{statistics.mean(psnrs):.2f} ± {deviation:.2f}"
        assert row[4:6] == ["-", "3"] and row[7] == "0 1" and row[9] == scores[0]["commit"]
    files = [*(folders / "log").rglob("*.pt"), *(folders / "log").rglob("scores.json")]
    times = [path.stat().st_mtime_ns for path in files]
    assert results.main(flags) == 0
    assert rows(capsys.readouterr().out) == first
    assert [path.stat().st_mtime_ns for path in files] == times and len(files) >= 8


def test_the_models_have_published_numbers_with_their_protocol_and_curves(folders, capsys):
    assert results.main(words(folders, "--table", "models", "--scenes", "demo", "--minutes",
                              "1")) == 0
    out = capsys.readouterr().out
    row, = rows(out)
    assert row[:3] == ["demo", "mip-NeRF", "1"] and "nerf-factory" in out
    assert (folders / "log" / "curves_demo.png").stat().st_size > 1000
    assert ("lego", "mipnerf") in results.PUBLISHED


def test_seeds_of_different_length_are_a_range():
    found = [{"steps": 900, "seconds": 299.8}, {"steps": 1100, "seconds": 300.2},
             {"steps": 1000, "seconds": 300.0}]
    assert results.provenance_cells(found) == ["900 to 1,100", "300"]


def test_every_table_lists_runs_of_different_names(capsys):
    assert results.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(results.TABLES)
    args = results.parse(["--all"])
    for table in results.TABLES.values():
        names = [run.name for run in table.runs(args)]
        assert names and len(set(names)) == len(names)


# The loop of kills.


def test_unequal_files_are_named_and_times_do_not_count(tmp_path):
    for name, seconds, psnr in (("a", 1.0, 20.0), ("b", 2.0, 20.0), ("c", 1.0, 21.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "seconds": seconds, "psnr": psnr}) + "\n")
    (tmp_path / "b" / "more.png").write_bytes(b"image")
    found = [kill_loop.contents(tmp_path / name) for name in "abc"]
    assert kill_loop.differences(found[0], found[0]) == []
    assert kill_loop.differences(found[0], found[1]) == ["more.png is too many"]
    assert kill_loop.differences(found[1], found[2]) == ["metrics.jsonl differs",
                                                         "more.png is missing"]


def test_killed_commands_leave_equal_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kill_loop, "write_blender", lambda folder, _: write_blender(folder))
    monkeypatch.setattr(kill_loop, "TRAINING", ["--preset", "debug", *TINY.split()])
    monkeypatch.setattr(kill_loop, "EARLIEST", 0.0)
    assert not kill_loop.main(["--kills", "1", "--work", "cameras", "--log_dir",
                               str(tmp_path / "loop")])
    out = capsys.readouterr().out
    assert "All files are equal." in out and [row[-1] for row in rows(out)] == ["0"]


def test_the_loop_overwrites_nothing(tmp_path):
    with pytest.raises(UserError, match="exists and is not changed"):
        kill_loop.parse(["--log_dir", str(tmp_path)])
    with pytest.raises(UserError, match="give --photographs FOLDER"):
        kill_loop.parse(["--work", "capture", "--log_dir", str(tmp_path / "new")])
    with pytest.raises(UserError, match="nowhere is no folder"):
        kill_loop.parse(["--photographs", str(tmp_path / "nowhere"), "--log_dir",
                         str(tmp_path / "new")])
