"""From photographs to a video and a mesh by one command: what runs, in which order, and again."""

import json
import shutil
from pathlib import Path

import pytest

import extract_mesh
import train
import visualize
from runtime.errors import UserError
from scripts import prepare_capture
from tests.scenes import write_colmap

COMMANDS = {"train.py": train, "visualize.py": visualize, "extract_mesh.py": extract_mesh}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Arguments that name photographs and a scene which was prepared from them before."""
    monkeypatch.chdir(tmp_path)
    source, out = Path("photos/garden"), Path("scenes/garden")
    source.mkdir(parents=True)
    write_colmap(out, factor=1, size=(24, 16))
    settings = {"source": str(source.absolute()), "num_frames": 150, "matching": "auto",
                "camera": "auto", "lens": "SIMPLE_RADIAL"}
    (out / "prepare.json").write_text(json.dumps(settings))
    return [str(source), str(out)]


class FakeCommands:
    """Stands in for `run_command`: records commands, and writes what they would write."""

    def __init__(self):
        self.ran, self.fail_at = [], None

    def __call__(self, words):
        script, flags = Path(words[1]).name, words[2:]
        self.ran.append((script, flags))
        if script == self.fail_at:
            return 7
        run = Path("log/colmap_garden_zipnerf")
        if script == "train.py":
            minutes = float(flags[flags.index("--minutes") + 1]) if "--minutes" in flags else 5.0
            steps = round(100 * minutes)
            self.write(run / f"checkpoint_{steps:08d}.pt")
            (run / "config.json").write_text(json.dumps({"max_steps": steps, "minutes": minutes}))
            self.write(run / f"eval_test_{steps:08d}" / "scores.json")
        else:
            steps = json.loads((run / "config.json").read_text())["max_steps"]
            self.write(run / (f"video_ellipse_{steps:08d}_60x24x16/rgb_depth_20fps.mp4"
                              if script == "visualize.py" else f"mesh_{steps:08d}_256/mesh.ply"))
        return 0

    @staticmethod
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def scripts(self):
        """The scripts since the last call."""
        scripts, self.ran = [script for script, _ in self.ran], []
        return scripts


@pytest.fixture
def commands(monkeypatch):
    fake = FakeCommands()
    monkeypatch.setattr(prepare_capture, "run_command", fake)
    return fake


def test_training_video_and_mesh_follow_the_preparation(prepared, commands, capsys):
    assert prepare_capture.main([*prepared, "--train", "--minutes", "2.5"]) == 0
    assert commands.ran[0] == ("train.py", [
        "--preset", "laptop", "--model", "zipnerf", "--dataset_name", "colmap", "--scene",
        "scenes/garden", "--factor", "1", "--minutes", "2.5"])
    assert commands.ran[1][1][:2] == ["--run", "log/colmap_garden_zipnerf"]
    assert commands.scripts() == ["train.py", "visualize.py", "extract_mesh.py"]
    run = "log/colmap_garden_zipnerf"
    out = capsys.readouterr().out
    assert f"Video:  {run}/video_ellipse_00000250_60x24x16/rgb_depth_20fps.mp4\n" in out
    assert f"Mesh:   {run}/mesh_00000250_256/mesh.ply\n" in out
    assert f"Scores: {run}/eval_test_00000250/scores.json" in out
    assert f"Next:   python visualize.py --run {run}" in out


def test_the_same_command_does_what_is_missing_and_more_minutes_train_further(prepared, commands):
    argv = [*prepared, "--train"]
    prepare_capture.main(argv)
    commands.scripts()
    prepare_capture.main(argv)
    assert commands.scripts() == []
    shutil.rmtree("log/colmap_garden_zipnerf/mesh_00000500_256")
    prepare_capture.main(argv)
    assert commands.scripts() == ["extract_mesh.py"]
    prepare_capture.main([*argv, "--minutes", "5"])
    assert commands.scripts() == []
    prepare_capture.main([*argv, "--minutes", "15"])
    assert commands.ran[0][1][-3:] == ["--minutes", "15", "--continue_training"]
    assert commands.scripts() == ["train.py", "visualize.py", "extract_mesh.py"]


def test_an_unscored_training_is_resumed(prepared, commands):
    prepare_capture.main([*prepared, "--train"])
    shutil.rmtree("log/colmap_garden_zipnerf/eval_test_00000500")
    commands.scripts()
    prepare_capture.main([*prepared, "--train"])
    assert commands.ran[0][1][-1] == "--continue_training"
    assert commands.scripts() == ["train.py"]


@pytest.mark.parametrize("script", COMMANDS)
def test_a_failing_command_ends_with_its_status(prepared, commands, script, capsys):
    commands.fail_at = script
    assert prepare_capture.main([*prepared, "--train"]) == 7
    assert commands.scripts()[-1] == script
    assert "Video:" not in capsys.readouterr().out


def test_debug_sizes_from_end_to_end(prepared, monkeypatch, capsys):
    """In this process, with the commands themselves."""
    monkeypatch.setattr(prepare_capture, "MODEL", "--preset debug --model zipnerf")
    monkeypatch.setattr(prepare_capture, "VIDEO", "--frames 2 --fps 20 --visualize_depth")
    monkeypatch.setattr(prepare_capture, "MESH",
                        "--grid_size 16 --method density --sigma_threshold 0.2 --keep_unseen")
    monkeypatch.setattr(prepare_capture, "run_command",
                        lambda words: COMMANDS[Path(words[1]).name].main(words[2:]) or 0)
    assert prepare_capture.main([*prepared, "--train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[1].rstrip(",") for line in lines[-5:]
             if line.startswith(("Video:", "Mesh:", "Scores:"))]
    assert [Path(file).suffix for file in named] == [".mp4", ".ply", ".json"]
    assert all(Path(file).stat().st_size > 100 for file in named)


def test_the_scenes_folder_follows_from_the_photographs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos/garden").mkdir(parents=True)
    args = prepare_capture.parse(["photos/garden", "--train"])
    assert args.paths[1] == Path("data/colmap/garden")
    assert prepare_capture.parse(["walk.mp4", "--train"]).paths[1] == Path("data/colmap/walk")


def test_a_scene_beside_the_working_folder_is_a_path(prepared, monkeypatch):
    monkeypatch.chdir("scenes")
    assert "./garden" in prepare_capture.training_flags(Path("garden"))


@pytest.mark.parametrize("words,message", [
    (["a", "b", "--minutes", "5"], "--minutes is the time of training; give --train, too"),
    (["a", "--check", "--train"], "--check only reports; leave out --train"),
    (["a", "--train", "--minutes", "0"], "expected"),
    (["a", "--train", "--minutes", "nan"], "expected"),
    (["a", "b", "c", "--train"], "3 paths were given"),
])
def test_wrong_flags_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        prepare_capture.main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_scene_that_others_made_is_not_trained(prepared, commands):
    Path(prepared[1], "prepare.json").unlink()
    with pytest.raises(UserError, match="holds a scene already"):
        prepare_capture.main([*prepared, "--train"])
    assert commands.scripts() == []
