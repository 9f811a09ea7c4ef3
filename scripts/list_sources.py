"""The sources of the figures in the documents: writes the page misc/Sources.md.

    python scripts/list_sources.py

Every paragraph, list and table of README.md and misc/*.md with a measured figure has a source: a
comment `<!-- source: ... -->` before it, which readers of the page do not see, a command that it
names, or else the last commands above it under its heading. A comment may also say "paper: ...",
"setting: ..." (a value that is chosen, not measured), "arithmetic: ...", or "no command: ..." and
why; the page counts the latter.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.errors import run_script  # noqa: E402
from runtime.files import write_atomically  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "misc" / "Sources.md"

# A number or a range of numbers with a unit. Columns of a table have the unit in their head.
NUMBER = r"(?<![\w.])\d[\d,.]*(?:\s?(?:to|-|–|and|or)\s?\d[\d,.]*)*\s?"
UNITS = (r"dB|(?:million )?(?:rays|samples|points|frames|images|steps)(?:/s| a second| per second)|"
         r"seconds?|m?s(?![\w^])|µs|minutes|hours|days|[KMG]i?B|%|"
         r"times (?:as|faster|slower)")
FIGURE = re.compile(rf"{NUMBER}(?:{UNITS})|(?:off by|error was) \d")
MEASURED_COLUMNS = re.compile(r"dB|SSIM|seconds?\b|rays/s|GB|MB|PSNR|error|ratio|days|\bs\b")
COMMENT = re.compile(r"<!-- source: (.*?) -->", re.S)
COMMAND = re.compile(r"(?:python |torchrun |make demo|scripts/\w+\.)")
INTRODUCTION = """# Sources of the figures

The {count} paragraphs and tables of README.md and misc/ with a figure, and the command that prints
it, the paper that published it, or the setting or arithmetic behind it. {unprinted} of them come,
at least in part, from trials that no command repeats, and say so. Written by
`python scripts/list_sources.py`; a test fails if a figure has no source, or if this page is old.
Machines and revisions are listed in [Results.md](Results.md#11-provenance).
"""


class Block(NamedTuple):
    """A paragraph, list or table: its document, its heading, its text, and its source or None."""

    document: str
    heading: str
    text: str
    source: str | None


def main():
    blocks = all_blocks()
    lost = [block for block in blocks if block.source is None]
    write_atomically(PAGE, lambda file: file.write(page().encode()))
    for block in lost:
        print(f"{block.document}, {block.heading}: {first_words(block.text)}")
    print(f"{PAGE}: {len(blocks)} paragraphs and tables, {len(lost)} without a source")
    return 1 if lost else 0


def all_blocks():
    """The `Block`s of all documents."""
    return [block for path in documents()
            for block in blocks_with_figures(path.relative_to(ROOT).as_posix(), path.read_text())]


def documents():
    """The documents in English, without the page of sources."""
    return [ROOT / "README.md"] + [path for path in sorted(PAGE.parent.glob("*.md"))
                                   if not path.stem.endswith("_zh") and path != PAGE]


def blocks_with_figures(name, text):
    """The `Block`s of a document that hold a measured figure."""
    heading, commands, found = "", None, []
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    text = re.sub(r"^(#+ .*)$", r"\n\1\n", text, flags=re.M)
    for part in re.split(r"\n\s*\n", text):
        comments = COMMENT.findall(part)
        body = COMMENT.sub("", part).strip("\n")
        if body.startswith("#"):
            heading, commands = body.lstrip("#").strip(), None
        elif body.startswith("    "):
            commands = listed_commands(body) or commands
        elif has_figure(body):
            comment = " ".join(comments[-1].split()) if comments else None
            found.append(Block(name, heading, body, comment or named_commands(body) or commands))
    return found


def listed_commands(code):
    """The lines of a block of code; None if none of them is a command."""
    lines = [" ".join(line.split("  #")[0].split())
             for line in code.replace("\\\n", "").splitlines()]
    return "; ".join(f"`{line}`" for line in lines) if any(map(COMMAND.search, lines)) else None


def has_figure(text):
    """Whether a paragraph states a number with a unit, or a table has columns of measurements."""
    prose = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)
    if FIGURE.search(prose):
        return True
    rows = text.splitlines()
    return (text.startswith("|") and bool(MEASURED_COLUMNS.search(rows[0]))
            and any(re.match(r"\s*[\d.,]+", cell) for row in rows[2:] for cell in row.split("|")))


def named_commands(text):
    """The commands in a paragraph's code spans; None if it has none."""
    spans = [span for span in re.findall(r"`([^`]+)`", text) if COMMAND.match(span)]
    return "; ".join(f"`{span}`" for span in dict.fromkeys(spans)) or None


def first_words(text, count=12):
    """The first words of a paragraph, or of a table's head."""
    words = re.sub(r"[|`*<>]|!?\[|\]\([^)]*\)|-{3,}", " ", text).split()
    return " ".join(words[:count]) + (" ..." if len(words) > count else "")


def count_unprinted(blocks):
    """The number of `Block`s with a figure that no command prints."""
    return sum("no command" in (block.source or "") for block in blocks)


def page():
    """The text of the page of sources."""
    blocks = all_blocks()
    lines = [INTRODUCTION.format(count=len(blocks), unprinted=count_unprinted(blocks))]
    for name in dict.fromkeys(block.document for block in blocks):
        lines.append(f"## {name}\n\n| section | begins | source |\n| --- | --- | --- |")
        for block in blocks:
            if block.document == name:
                cells = block.heading, first_words(block.text), block.source or "**none**"
                lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    run_script(main)
