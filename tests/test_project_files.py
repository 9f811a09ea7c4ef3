"""Files for those who cite the project, report a problem or contribute."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scripts import compare_commits, learning_curves, prepare_capture

ROOT = Path(__file__).parents[1]
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
         if path.name != "config.yml"]


def read(name):
    return (ROOT / name).read_text()


def test_the_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.M)[1]
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.M)[1] == version
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)[1] == version


def test_the_citation_names_the_papers_of_the_readme():
    papers = set(re.findall(r"https://arxiv\.org/abs/[\d.]+", read("CITATION.cff")))
    assert len(papers) == 4 and all(paper in read("README.md") for paper in papers)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_a_report_that_the_script_gives(form):
    text = " ".join(form.read_text().split())
    words = re.search(r"python scripts/prepare_capture.py (\S+ \S+?)`", text)[1].split()
    args = prepare_capture.parse(words)
    assert args.check and args.paths == [Path("data/colmap/garden")]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_forms_have_what_the_host_requires(form):
    text = form.read_text()
    assert re.search(r"^name: \S", text, re.M) and re.search(r"^description: \S", text, re.M)
    fields = re.split(r"^  - type: ", text, flags=re.M)[1:]
    assert fields[-1].startswith("textarea")
    ids = re.findall(r"^    id: (\w+)$", text, re.M)
    assert len(ids) == len(set(ids)) == sum(field.startswith("textarea") for field in fields)
    assert not re.search(r"\t", text)


def test_the_workflow_runs_the_tests_on_every_system_and_supported_python():
    text = read(".github/workflows/test.yml")
    assert "- run: make test" in text
    for system in ("ubuntu", "macos", "windows"):
        assert f"{system}-latest" in text
    versions = re.findall(r'"(3\.\d+)"', text)
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert f'requires-python = ">={versions[0]}"' in read("pyproject.toml")


@pytest.mark.parametrize("system,python", [("", ".venv/bin/python"),
                                           ("Windows_NT", ".venv/Scripts/python")])
def test_make_finds_the_interpreter_of_the_system(system, python):
    lines = subprocess.run(["make", "-n", "test", f"OS={system}"], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout.splitlines()
    assert any(line.startswith(f"OMP_NUM_THREADS=1 {python} -m pytest") for line in lines)


def test_the_commands_for_contributors_are_those_of_the_scripts():
    text = read("CONTRIBUTING.md").replace("\\\n", " ")
    line = re.search(r"scripts/learning_curves\.py (.*)", text)[1]
    args = learning_curves.parse_args(shlex.split(line))
    assert [path.name for path in args.checkouts] == ["before", "after"]
    assert "../before ../after" in re.search(r"scripts/compare_commits\.py (.*)", text)[1]
    assert "OLD_CHECKOUT NEW_CHECKOUT" in compare_commits.__doc__
