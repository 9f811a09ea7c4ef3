"""Set-up files, layers and documents that must stay in step with the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from config import _build_parser

ROOT = Path(__file__).parents[1]
LAYERS = {
    "config": 0, "hash_kernels": 0, "stepfun": 0, "coord": 0, "pose_utils": 0, "file_utils": 0,
    "image_utils": 0, "scheduler": 0, "video_utils": 0, "randomness": 0, "distributed": 0,
    "memory": 0, "mesh_utils": 0, "records": 0, "hash_grid": 1, "occupancy": 1, "ray_utils": 1,
    "lights": 1, "demo_scene": 1, "camera_paths": 2, "fields": 2, "loss": 2, "nerv": 2,
    "scene_files": 2, "lit_files": 2, "demo_lights": 2, "light_paths": 3, "datasets": 3,
    "model": 4, "scene_report": 4, "checkpoint": 5, "evaluate": 6, "train": 7, "visualize": 7,
    "extract_mesh": 7,
}
# Files of one layer that others of it may use: the error type, and writing.
SHARED_IN_LAYER_0 = {"config", "file_utils"}
PACKAGES = {"cv2": "opencv-python-headless", "PIL": "pillow", "skimage": "scikit-image",
            "imageio_ffmpeg": "imageio-ffmpeg", "mcubes": "PyMCubes"}


def imported(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def requirements(path):
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("-"))


def toml_section(name):
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"([a-zA-Z0-9-]+)>=', re.search(rf"\n{name} = \[(.*?)\]", text, re.S)[1])


def test_every_file_has_its_layer_and_imports_go_strictly_downward():
    files = {path.stem: path for path in ROOT.glob("*.py")}
    assert set(files) == set(LAYERS)
    for name, path in files.items():
        for other in imported(path) & set(files):
            downward = LAYERS[other] < LAYERS[name]
            shared = LAYERS[name] == 0 and other in SHARED_IN_LAYER_0
            assert downward or shared, f"{name} imports {other}"


def test_pure_maths_knows_no_config_and_no_file():
    for name in ("stepfun", "coord", "ray_utils"):
        assert imported(ROOT / f"{name}.py") <= {"math", "dataclasses", "typing", "collections",
                                                 "torch", "coord", "stepfun", "records"}


def test_importing_the_files_prints_and_parses_nothing():
    code = f"import sys; sys.argv = ['x', '--nonsense']; import {', '.join(sorted(LAYERS))}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "visualize.py", "extract_mesh.py"])
@pytest.mark.parametrize("flags,status", [(["--help"], 0), (["--no_such_flag"], 2)])
def test_help_and_wrong_flags_are_answered_without_importing_torch(script, flags, status):
    result = subprocess.run([sys.executable, "-X", "importtime", script, *flags], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == status
    assert "usage:" in result.stdout + result.stderr
    assert not re.search(r"\| +torch$", result.stderr, re.M)


def test_every_imported_package_is_required_and_pinned():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")]
    standard, own = set(sys.stdlib_module_names), {*LAYERS, "scripts"}
    used = {PACKAGES.get(n, n) for path in paths for n in imported(path) - standard - own}
    pins = set(requirements(ROOT / "requirements.txt"))
    # Imported where they are needed, and done without where they are not there.
    optional = {"lpips", "certifi"}
    assert used - optional <= pins
    # torch.utils.tensorboard writes through tensorboard.
    assert pins - used <= {"tensorboard"}
    assert set(toml_section("dependencies")) == pins
    assert "lpips" in toml_section("metrics")


def test_pins_satisfy_the_lower_bounds():
    text = (ROOT / "pyproject.toml").read_text()
    bounds = dict(re.findall(r'"([a-zA-Z0-9-]+)>=([\d.]+)"', text))
    for name, version in requirements(ROOT / "requirements.txt").items():
        number = [int(part) for part in re.findall(r"\d+", version)]
        assert number >= [int(part) for part in bounds[name].split(".")]


def test_conda_file_installs_the_same_requirements():
    text = (ROOT / "mipNeRF.yml").read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("- ")]
    assert lines == ["- conda-forge", "- python=3.11", "- pip", "- pip:", "- -r requirements.txt"]


def test_ci_and_readme_run_the_same_tests():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    assert "-m pytest" in makefile and "make test" in readme and "make demo" in readme


@pytest.mark.parametrize("document", ["README.md", "README_zh.md", "misc/Code.md",
                                      "misc/Code_zh.md", "misc/Summary.md", "misc/Summary_zh.md",
                                      "misc/Conventions.md", "misc/Data.md",
                                      "misc/Performance.md", "misc/NeRV.md"])
def test_documents_name_only_flags_and_files_that_exist(document):
    text = (ROOT / document).read_text()
    flags = {option for action in _build_parser()._actions for option in action.option_strings}
    scripts = "".join(path.read_text() for path in ROOT.glob("scripts/*.py"))
    foreign = {"--upgrade", "--logdir", "--nodes", "--ntasks-per-node", "--gpus-per-node",
               "--cpus-per-task"}
    foreign |= {option for action in get_args_parser()._actions for option in action.option_strings}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - foreign:
        assert flag in flags or f'"{flag}"' in scripts or flag == "--", flag
    for name in set(re.findall(r"`((?:scripts/|misc/|tests/)?\w+\.(?:py|sh|yml|md|txt))", text)):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / document).parent / link).exists(), link
