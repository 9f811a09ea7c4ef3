"""Helpers of the measuring scripts (bench_*.py): flags, processes, tables, run folders."""

import argparse
import json
import multiprocessing
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from runtime.commands import run_command
from runtime.errors import UserError
from runtime.provenance import git_commit
from runtime.run_log import read_metrics

# Flags.


def make_parser(description):
    """An argument parser that prints a script's docstring as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_run_flags(parser):
    """Add the run folders and `--device` to a parser."""
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    add_device_flag(parser)


def add_device_flag(parser, default="auto"):
    """Add `--device` to a parser."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default=default)


# Processes. Each measurement has its own, so that earlier ones leave no memory behind.


def call_in_process(function, *args):
    """The result of `function(*args)` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def run_case(command, failure):
    """The JSON object that a command prints last.

    The command prints its own error. Raises UserError with the sentence `failure` if it fails.
    """
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise UserError(failure)
    # Earlier lines are messages, for example on a halved micro-batch.
    return json.loads(result.stdout.splitlines()[-1])


def check_run(words):
    """Run a command, whose output goes to standard error.

    The command prints its own error. Raises UserError if it fails.
    """
    if run_command(words, output=sys.stderr):
        raise UserError(f"`{shlex.join(words)}` failed; its own message is above.")


# Tables.


def environment_line():
    """Commit, PyTorch version and number of threads."""
    return f"commit {git_commit()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def table_head(columns):
    """The two head lines of a Markdown table."""
    return f"{table_row(columns)}\n|{' --- |' * len(columns)}"


def table_row(cells):
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


# Run folders.


def training_seconds(folder):
    """A function from a step of a run to its seconds of training so far, by interpolation.

    Raises UserError if the folder has no metrics.
    """
    try:
        lines = read_metrics(folder / "metrics.jsonl")
    except OSError:
        raise UserError(f"{folder} holds no metrics.jsonl; give run folders of train.py.") from None
    steps, seconds = ([0] + [line[key] for line in lines] for key in ("step", "seconds"))
    return lambda step: np.interp(step, steps, seconds)
