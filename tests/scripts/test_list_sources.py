"""Every figure in the documents has a source."""

import re

import pytest

from scripts import list_sources
from scripts.list_sources import ROOT, all_blocks, blocks_with_figures

# Figures of trials that no command repeats. Measure them by a command or remove them; add none.
MOST_UNPRINTED = 18

TABLE = "| run | PSNR dB |\n| --- | --- |\n| lego | 30.5 |"


def test_every_figure_has_a_source():
    lost = [(block.document, block.heading, block.text[:80]) for block in all_blocks()
            if block.source is None]
    assert not lost, "add a command, or a comment <!-- source: ... --> (scripts/list_sources.py)"


def test_the_page_of_sources_is_that_of_the_documents():
    assert list_sources.PAGE.read_text() == list_sources.page(), \
        "run python scripts/list_sources.py"


def test_figures_without_a_command_become_no_more():
    assert list_sources.count_unprinted(all_blocks()) <= MOST_UNPRINTED


def test_sources_are_commands_that_exist_or_say_what_else_they_are():
    kinds = r"(paper|setting|arithmetic|no command): .|the .*command|errors by `"
    for block in filter(lambda block: block.source, all_blocks()):
        files = re.findall(r"\b(?:scripts/)?\w+\.(?:py|sh)\b", block.source)
        commands = re.findall(r"`(?:OMP_NUM_THREADS=\d )?(python|scripts/|make demo|torchrun)",
                              block.source)
        assert re.match(kinds, block.source) or commands, block
        for file in files:
            assert (ROOT / file).exists() or list(ROOT.glob(f"*/{file}")), (block.heading, file)


@pytest.mark.parametrize("sentence", [
    "Training takes 5 minutes.", "It is 3 to 4 times as fast.", "At 12,000 rays/s.", "30.51 dB",
    "It needs 0.7 GB.", "12 % of the pixels", "- a list\n- of 3.5 s", TABLE])
def test_a_figure_without_a_source_is_found(sentence):
    [block] = blocks_with_figures("page", f"# Title\n\nNo number.\n\n## Part\n\n{sentence}\n")
    assert (block.heading, block.text, block.source) == ("Part", sentence, None)


@pytest.mark.parametrize("text", [
    "The size is 200×200 pixels.", "At $l = 3 s$ it ends.", "See `--minutes 5 s`.",
    "| name | kind |\n| --- | --- |\n| 3 | a |", "```\n30 dB\n```"])
def test_other_numbers_are_no_figures(text):
    assert not blocks_with_figures("page", f"# Title\n\n{text}\n")


@pytest.mark.parametrize("text, source", [
    (f"<!-- source: paper: it -->\n{TABLE}", "paper: it"),
    (f"    python evaluate.py \\\n        --run log/a   # all\n\n{TABLE}",
     "`python evaluate.py --run log/a`"),
    ("With `python evaluate.py` 30 dB, with `--exact` 31 dB.", "`python evaluate.py`"),
    (f"    make demo\n\n    make demo\n    python train.py\n\n{TABLE}",
     "`make demo`; `python train.py`")])
def test_a_source_is_a_comment_or_a_command(text, source):
    [block] = blocks_with_figures("page", f"# Title\n\n{text}\n")
    assert block.source == source


def test_commands_of_another_section_are_no_source():
    [block] = blocks_with_figures("page", f"# A\n\n    make demo\n\n## B\n\n{TABLE}\n")
    assert block.source is None
