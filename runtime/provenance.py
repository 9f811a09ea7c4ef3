"""The version of the code that made a result."""

import subprocess
from pathlib import Path


def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The short hash of a checkout's commit, with '+' if files were changed since.

    'unknown' outside a git repository.
    """
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
