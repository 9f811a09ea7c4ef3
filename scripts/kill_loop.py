"""Kill commands at random moments, run them again, and compare their files with undisturbed ones.

    python scripts/kill_loop.py --kills 200
    python scripts/kill_loop.py --kills 20 --work video mesh
    python scripts/kill_loop.py --kills 20 --work capture --photographs photos/garden

Makes the demo scene, small, and trains a tiny model of it. Each command then runs undisturbed, and
again in another folder, where SIGKILL ends it at a random moment, up to three times, before it may
go on to its end. The files of both folders must be equal: names and bytes, of checkpoints all
tensors, and of JSON files all values but times. COLMAP computes on several threads and adds in any
order, so of a capture only the images are compared byte by byte.

Prints a row for each command, and ends with status 1 if a file differed. --log_dir must be new.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from checkpoint import list_checkpoints  # noqa: E402
from procedural.scene import write_blender  # noqa: E402
from runtime.commands import command, run_command  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.flags import integer  # noqa: E402
from scripts.benchmark import environment_line, make_parser, table_head, table_row  # noqa: E402

COLUMNS = ["command", "kills", "rounds", "unequal files"]

# A tiny model, with all that a training writes.
TRAINING = ("--preset debug --device cpu --max_steps 200 --save_every 10 --log_every 10 "
            "--eval_every 100 --keep_checkpoints 2 --batch_size 16 --num_samples 4").split()
# Sides of the demo scene's images, in pixels.
IMAGE_SIZE = 24

# Kills before a command may run to its end; when they strike, in durations of the whole command.
MAX_KILLS, EARLIEST, LATEST = 3, 0.3, 1.0

# Values in JSON files that differ from run to run.
TIMES = {"seconds", "rays_per_second", "memory_gb", "time"}


class Work(NamedTuple):
    """A command: its script, its flags, and whether it needs a trained run."""

    script: str
    words: tuple[str, ...]
    needs_run: bool = True


WORKS = {
    "training": Work("train.py", ("--save_images",), needs_run=False),
    "evaluation": Work("evaluate.py", ("--save_images",)),
    "video": Work("visualize.py", ("--frames", "40", "--width", "60", "--visualize_depth")),
    "mesh": Work("extract_mesh.py", ("--grid_size", "100")),
    "points": Work("export.py", ("--format", "ply", "--num_points", "20000")),
    "cameras": Work("export.py", ("--format", "cameras")),
    "capture": Work("scripts/prepare_capture.py", (), needs_run=False),
}


class Count(NamedTuple):
    """Kills, rounds, and descriptions of files that differed."""

    kills: int
    rounds: int
    faults: list[str]


def main(argv=None):
    args = parse(argv)
    print(f"{environment_line()}; moments drawn from seed {args.seed}", flush=True)
    scene = args.log_dir / "scene"
    write_blender(scene, IMAGE_SIZE)
    trained = args.log_dir / "trained"
    finish(words_of(WORKS["training"], scene, trained, args.photographs))
    print(table_head(COLUMNS), flush=True)
    rng, faults = random.Random(args.seed), []
    for name in args.work:
        kills = len(range(args.work.index(name), args.kills, len(args.work)))
        count = kill_repeatedly(args, name, scene, trained, kills, rng)
        print(table_row([name, count.kills, count.rounds, len(count.faults)]), flush=True)
        faults += count.faults
    print("\n".join(faults) or "All files are equal.")
    return bool(faults)


def parse(argv):
    """The parsed command line. Raises UserError for a folder in use, or a capture of nothing."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=integer(1), default=200)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=None,
                        help="commands (default: all, capture only with --photographs)")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, for capture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log_dir", type=Path, default=Path("log/kill_loop"))
    args = parser.parse_args(argv)
    if args.work is None:
        args.work = [name for name in WORKS if args.photographs or name != "capture"]
    if "capture" in args.work and args.photographs is None:
        raise UserError("--work capture needs photographs; give --photographs FOLDER.")
    if args.photographs and not args.photographs.is_dir():
        raise UserError(f"--photographs {args.photographs} is no folder; give one of photographs.")
    if args.log_dir.exists():
        raise UserError(f"{args.log_dir} exists and is not changed; give a new --log_dir.")
    return args


def kill_repeatedly(args, name, scene, trained, kills, rng):
    """The `Count` of a command that is killed about `kills` times."""
    work, done, rounds, faults = WORKS[name], 0, 0, []
    whole, killed = args.log_dir / name / "whole", args.log_dir / name / "killed"
    prepare(work, whole, trained)
    start = time.perf_counter()
    finish(words_of(work, scene, whole, args.photographs))
    duration = time.perf_counter() - start
    expected = contents(whole)
    while done < kills:
        prepare(work, killed, trained)
        for _ in range(min(MAX_KILLS, kills - done)):
            delay = rng.uniform(EARLIEST, LATEST) * duration
            was_killed, seconds = kill(words_of(work, scene, killed, args.photographs), delay)
            done += was_killed
            # A command that ended before was faster than the first, as when other work has ended.
            duration = duration if was_killed else min(duration, seconds)
        finish(words_of(work, scene, killed, args.photographs))
        faults += [f"{name}, round {rounds}: {text}"
                   for text in differences(expected, contents(killed))]
        rounds += 1
        shutil.rmtree(killed)
    return Count(done, rounds, faults)


# Commands.


def prepare(work, folder, trained):
    """Make the folder in which a command works, with a copy of the trained run if it needs one."""
    folder.mkdir(parents=True)
    if work.needs_run:
        shutil.copytree(trained / "run", folder / "run")


def words_of(work, scene, folder, photographs):
    """The command line that starts a command, or that goes on with it, in a folder."""
    run = folder / "run"
    if work.needs_run:
        return command(work.script, *work.words, "--run", run)
    if work.script != "train.py":
        return command(work.script, *work.words, photographs, run)
    resume = ["--continue_training"] if list_checkpoints(run) else []
    return command(work.script, *TRAINING, *work.words, "--scene", scene, "--log_dir", folder,
                   "--exp_name", "run", *resume)


def finish(words):
    """Run a command to its end. Raises UserError if it fails."""
    if run_command(words, output=subprocess.DEVNULL):
        raise UserError(f"the command failed: {' '.join(words)}; run it alone to see why.")


def kill(words, delay):
    """Start a command and kill it after `delay` seconds: whether it still ran, and how long."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    process.kill()
    return process.wait() == -signal.SIGKILL, time.perf_counter() - start


# Files.


def contents(folder):
    """The contents of a folder's files by name, as values that are equal in equal runs."""
    return {path.relative_to(folder).as_posix(): content(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock" and "tfevents" not in path.name}


def content(path):
    """A file's bytes, tensors, or values without times; True for what COLMAP computes."""
    if path.suffix == ".pt":
        return flattened(torch.load(path, weights_only=True))
    if path.name == "metrics.jsonl":
        return [flattened(json.loads(line)) for line in path.read_text().splitlines()]
    if is_of_colmap(path):
        return True
    if path.suffix == ".json":
        return flattened(json.loads(path.read_text()))
    return path.read_bytes()


def is_of_colmap(path):
    """Whether COLMAP's threads, or what follows from their sums, wrote a file."""
    return path.suffix in (".bin", ".db") or path.name in ("report.json", "report.png")


def flattened(value, name=""):
    """The leaves of nested dicts and lists by their names, without times; tensors as lists."""
    if isinstance(value, torch.Tensor):
        return {name: (str(value.dtype), value.float().tolist())}
    if isinstance(value, dict):
        items = [(key, v) for key, v in value.items() if key not in TIMES]
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {name: value}
    return {key: leaf for k, v in items for key, leaf in flattened(v, f"{name}/{k}").items()}


def differences(expected, found):
    """Descriptions of the files that are missing, too many, or differ."""
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    extra = [f"{name} is too many" for name in found.keys() - expected.keys()]
    changed = [f"{name} differs" for name in expected.keys() & found.keys()
               if expected[name] != found[name]]
    return sorted(missing + extra + changed)


if __name__ == "__main__":
    run_script(main)
