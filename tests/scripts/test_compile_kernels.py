"""The GPU kernels compile to machine code without a GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None,
                    reason="triton is not installed; pip install triton")
def test_the_kernels_compile_without_spills_and_add_by_reductions(tmp_path):
    command = [sys.executable, "scripts/compile_kernels.py", "--capabilities", "90", "--cases", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in result.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["_forward", "_table_gradient", "_points_gradient"]
    for row in rows:
        assert int(row[5]) > 0 and int(row[6]) <= 128 and row[7] == "0"
        assert "LDG.E.128" in row[9]  # An entry is one load.
        # Without a returned value: no thread waits for the sum.
        assert row[10].startswith("RED") == (row[1] == "_table_gradient")


def test_an_unknown_case_is_one_sentence():
    result = subprocess.run([sys.executable, "scripts/compile_kernels.py", "--cases", "9"],
                            cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "invalid choice" in result.stderr
