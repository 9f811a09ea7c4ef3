"""Figures of the summary: what they show is true, and documents link to functions that exist."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import draw_summary

ROOT = Path(__file__).parents[2]
PAGES = ["Summary.md", "Summary_zh.md"]
LINKS = sorted({link for page in PAGES for link in re.findall(
    r"\[`([\w/]+\.py): ([\w.]+)`\]\(\.\./([\w/]+\.py)\)", (ROOT / "misc" / page).read_text())})


def definitions(path):
    """Functions, classes, methods and constants of a file, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body
                      if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path,name,target", LINKS, ids=lambda value: value)
def test_equations_link_to_functions_that_exist(path, name, target):
    assert path == target and name in definitions(ROOT / path)


@pytest.mark.parametrize("page", PAGES)
def test_every_function_that_a_page_names_with_its_file_is_a_link(page):
    text = (ROOT / "misc" / page).read_text()
    assert len(LINKS) > 30 and not re.search(r"(?<!\[)`[\w/]+\.py: ", text)


@pytest.mark.parametrize("name", draw_summary.FIGURES)
def test_every_figure_is_in_the_documents_and_small(name):
    pages = PAGES if name != "shading" else ["NeRV.md"]
    for page in pages:
        assert f"pictures/summary_{name}.png" in (ROOT / "misc" / page).read_text()
    assert (ROOT / "misc" / "pictures" / f"summary_{name}.png").stat().st_size < 60_000


def test_the_drawn_gaussian_has_the_moments_of_the_frustums_points():
    points = draw_summary.frustum_points(400_000)
    mean, deviations = draw_summary.plane_gaussian(*draw_summary.FRUSTUM)
    np.testing.assert_allclose(mean, points.mean(axis=1), atol=0.003)
    np.testing.assert_allclose(deviations, points.std(axis=1), rtol=0.01)


def test_points_are_drawn_where_contraction_takes_them():
    points = np.array([[0.5, 4.0, 0.0], [0.0, 0.0, -1e9]])
    found = draw_summary.placed(points, contracted=True)
    np.testing.assert_allclose(found, [[0.5, 1.75, 0.0], [0.0, 0.0, -2.0]], atol=1e-6)


def test_a_rougher_sphere_has_a_weaker_highlight():
    brightest = [draw_summary.lit_sphere(roughness, 60)[25:35, 15:30].max(axis=-1).max()
                 for roughness in (0.3, 0.9)]
    white = draw_summary.lit_sphere(0.5, 60)[0, 0]
    assert brightest[0] > brightest[1] and np.all(white == 1)


def test_one_figure_is_drawn_by_name(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    draw_summary.main(["levels", "--out", str(tmp_path)])
    assert Image.open(tmp_path / "summary_levels.png").width == 800
    assert [path.name for path in tmp_path.iterdir()] == ["summary_levels.png"]
    with pytest.raises(SystemExit):
        draw_summary.main(["nothing"])
    assert "there is no figure nothing; choose of gaussian" in capsys.readouterr().err
