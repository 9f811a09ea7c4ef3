"""The tutorial notebook runs, and uses what the page of functions lists."""

import ast
import importlib
import inspect
import json
import re
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "misc" / "tutorial.ipynb"
NAMES = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "misc" / "API.md").read_text(), re.M)


def cells(kind):
    content = json.loads(NOTEBOOK.read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NAMES)
def test_each_function_on_the_page_exists_and_is_documented(name):
    module, function = name.rsplit(".", 1)
    found = getattr(importlib.import_module(module), function)
    assert inspect.isfunction(found) and inspect.getdoc(found)


def test_the_notebook_imports_only_functions_on_the_page():
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells("code")))
    imported = {f"{node.module}.{alias.name}" for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) for alias in node.names}
    own = {name for name in imported if (ROOT / f"{name.split('.')[0]}.py").exists()
           or (ROOT / name.split(".")[0]).is_dir()}
    assert len(own) > 10 and own <= set(NAMES)
    others = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
              for alias in node.names} - set(sys.stdlib_module_names)
    assert others == {"matplotlib", "numpy", "torch"}


def test_the_notebook_is_small_and_keeps_no_outputs():
    assert NOTEBOOK.stat().st_size < 300_000
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells("code"))
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (NOTEBOOK.parent / link).exists(), link


def test_the_notebook_runs_and_shows_that_cones_prevent_aliasing(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    # Its data go into a folder of the test.
    (tmp_path / "misc").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources={
        "metadata": {"path": str(tmp_path / "misc")}}).execute()
    assert time.monotonic() - start < 240  # Two minutes on two free cores.
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 9
    cones, rays = ([float(value) for value in re.search(rf"{name}: +([\d. ]+) dB", printed)[1]
                    .split()] for name in ("cones", "rays"))
    assert abs(cones[0] - rays[0]) < 1 and cones[0] > 15
    assert cones[-1] > rays[-1] + 1.5
