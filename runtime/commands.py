"""The project's commands, each in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]


def command(script: str, *words: object, checkout: Path = ROOT) -> list[str]:
    """The command line of a script of this or of another checkout."""
    return [sys.executable, str(checkout / script), *map(str, words)]


def run_command(words: Sequence[str], output: IO | None = None) -> int:
    """Run a command to its end and return its exit status; its output goes to `output`, if given.

    At Ctrl-C, which the command receives too, waits until it has saved its work.
    """
    sys.stdout.flush()
    process = subprocess.Popen(words, stdout=output)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
