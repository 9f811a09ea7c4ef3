"""Which code made a result."""

import subprocess
from pathlib import Path


def commit():
    """The commit of this code, with '+' where files differ from it; 'unknown' outside git."""
    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
