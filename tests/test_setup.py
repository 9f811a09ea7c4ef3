"""The house: who imports whom, how long files and functions are, set-up files, documents."""

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from config import BY_NAME

ROOT = Path(__file__).parents[1]

# Rooms and root files, lowest first: each imports only from those before it.
ORDER = [
    "runtime", "structures", "stepfun_numba", "stepfun", "coord", "pose_utils", "presets",
    "contradictions", "config", "scheduler", "image_utils", "ray_utils", "loss", "fields", "models",
    "cameras", "sparse", "procedural", "relighting", "model", "rendering", "loaders", "datasets",
    "checkpoint", "capture", "exporters", "viewer", "evaluate", "planning", "train",
    "visualize", "extract_mesh", "export", "view",
]
COMMANDS = ["train", "evaluate", "visualize", "extract_mesh", "export", "view"]
# Longer than 450 lines, and why.
LONG_FILES = {
    "config.py": "a table of all flags beside what resolves them",
    "ray_utils.py": "the whole way from a pixel to its colour",
    "compare_commits.py": "a table of cases beside what compares them",
}
PACKAGES = {"cv2": "opencv-python-headless", "PIL": "pillow", "pillow_heif": "pillow-heif",
            "skimage": "scikit-image", "imageio_ffmpeg": "imageio-ffmpeg", "mcubes": "PyMCubes"}


def source_files():
    """The project's Python files by module name, without tests and scripts."""
    paths = [*ROOT.glob("*.py"), *(p for room in ORDER for p in (ROOT / room).glob("*.py"))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


def modules_imported(path):
    """The modules that a file imports, also inside functions; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages_imported(path):
    return {name.split(".")[0] for name in modules_imported(path)}


def requirements(path):
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("-"))


def toml_section(name):
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"([a-zA-Z0-9-]+)>=', re.search(rf"\n{name} = \[(.*?)\]", text, re.S)[1])


def functions(path):
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


# The house.


def test_every_file_has_its_place():
    found = {path.stem for path in ROOT.glob("*.py")}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found | rooms == set(ORDER) and not found & rooms
    assert len(found) <= 22


@pytest.mark.parametrize("name", sorted(source_files()))
def test_imports_go_strictly_downward_between_rooms(name):
    room = name.split(".")[0]
    for other in packages_imported(source_files()[name]) & set(ORDER) - {room}:
        assert ORDER.index(other) < ORDER.index(room), f"{name} imports {other}"


def test_no_file_imports_itself_through_others():
    files = source_files()
    graph = {name: modules_imported(path) & set(files) for name, path in files.items()}
    while graph:
        leaves = {name for name, others in graph.items() if not others & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in leaves}


def test_pure_maths_uses_no_config_and_no_file():
    for name in ("stepfun", "coord", "ray_utils"):
        assert packages_imported(ROOT / f"{name}.py") <= {
            "functools", "math", "dataclasses", "typing", "collections", "torch", "coord",
            "stepfun", "stepfun_numba", "structures"}


def test_what_parses_flags_imports_the_standard_library_only():
    files = source_files()
    allowed = set(sys.stdlib_module_names) | {"presets", "contradictions", "runtime"}
    pending, seen = ["config"], set()
    while pending:
        name = pending.pop()
        seen.add(name)
        imported = modules_imported(files[name])
        pending += [other for other in imported & set(files) if other not in seen]
        assert {other.split(".")[0] for other in imported} <= allowed, name


def test_scripts_are_imported_by_nothing():
    for name, path in source_files().items():
        assert "scripts" not in packages_imported(path), name


def test_importing_the_files_has_no_side_effects():
    files = set(source_files())
    if importlib.util.find_spec("triton") is None:
        files -= {"fields.kernels_triton"}  # hash_grid.py imports it where it can.
    code = f"import sys; sys.argv = ['x', '--nonsense']; import {', '.join(sorted(files))}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_files_and_functions_are_short():
    lengths = {}
    for path in [*source_files().values(), *ROOT.glob("scripts/*.py")]:
        num_lines = len(path.read_text().splitlines())
        assert num_lines <= 450 or path.name in LONG_FILES, (path.name, num_lines)
        lengths |= {(path.name, node.name): node.end_lineno - node.lineno + 1
                    for node in functions(path)}
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 60, (longest, lengths[longest])
    assert statistics.median(lengths.values()) <= 10


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("flags,status", [(["--help"], 0), (["--no_such_flag"], 2)])
def test_help_and_wrong_flags_are_answered_without_importing_torch(script, flags, status):
    result = subprocess.run([sys.executable, "-X", "importtime", f"{script}.py", *flags], cwd=ROOT,
                            capture_output=True, text=True)
    assert result.returncode == status
    assert "usage:" in result.stdout + result.stderr
    assert not re.search(r"\| +torch$", result.stderr, re.M)


# Set-up files and documents.


def test_every_imported_package_is_required_and_pinned():
    paths = [*source_files().values(), *ROOT.glob("scripts/*.py")]
    known = set(sys.stdlib_module_names) | {*ORDER, "scripts"}
    used = {PACKAGES.get(n, n) for path in paths for n in packages_imported(path) - known}
    pins = set(requirements(ROOT / "requirements.txt"))
    # Imported inside the functions that can do without them.
    optional = {"lpips", "certifi", "triton", "selenium", "viser", "nerfbaselines", "xatlas",
                "fast_simplification", "matplotlib"}
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


DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"),
                                                           *ROOT.glob("misc/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_flags_and_files_that_exist(document):
    text = (ROOT / document).read_text()
    scripts = "".join(path.read_text() for path in ROOT.glob("scripts/*.py"))
    foreign = {"--upgrade", "--logdir", "--nodes", "--ntasks-per-node", "--gpus-per-node",
               "--cpus-per-task", "--help"}
    foreign |= {option for action in get_args_parser()._actions for option in action.option_strings}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text)) - foreign:
        name = flag.removeprefix("--").removeprefix("no-")
        assert name in BY_NAME or f'"{flag}"' in scripts, flag
    names = r"`((?:[a-z]+/)?\w+\.(?:py|sh|yml|md|txt|toml))"
    for name in set(re.findall(names, text)):
        assert (ROOT / name).exists() or list(ROOT.glob(f"*/{name}")), name
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / document).parent / link).exists(), link


def test_the_index_of_documents_lists_them_all():
    readme = (ROOT / "README.md").read_text()
    for document in DOCUMENTS:
        assert document == "README.md" or document in readme, document
