"""Training speed of two checkouts of the project, in turn: a Markdown table.

    python scripts/compare_speed.py OLD_CHECKOUT NEW_CHECKOUT
    python scripts/compare_speed.py ../old . --models zipnerf nerv --threads 1 --rounds 5

Each round trains the laptop preset of every model on the demo scene by the command line of the old
checkout, then of the new one, on the CPU. Rays per second are the median over the logged
intervals after the first half of the steps, when all kernels are compiled; ratios are medians over
rounds. Both sides read the demo scene of the first that makes it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import positive_int  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402
from scripts.benchmark import make_parser, table_head, table_row  # noqa: E402

MODELS = ("mipnerf", "mipnerf360", "zipnerf")
COLUMNS = ["model", "threads", "old rays/s", "new rays/s", "ratio", "old GB", "new GB"]


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", nargs="+", type=positive_int, default=[1, 2])
    parser.add_argument("--steps", type=positive_int, default=200)
    parser.add_argument("--rounds", type=positive_int, default=3)
    args = parser.parse_args(argv)
    old, new = (git_commit(folder) for folder in args.checkouts)
    print(f"Commits {old} and {new}; preset laptop, demo scene, {args.steps} steps, seed 0.\n")
    print(table_head(COLUMNS))
    with tempfile.TemporaryDirectory() as work:
        for model in args.models:
            for threads in args.threads:
                print(table_row(compare(args, model, threads, Path(work))), flush=True)


def compare(args, model, threads, work):
    """A row of the table."""
    speeds, memory = ([], []), (0.0, 0.0)
    for index in range(args.rounds):
        results = [train(folder.resolve(), model, threads, args.steps, work,
                         f"{side}_{model}_{threads}_{index}")
                   for side, folder in enumerate(args.checkouts)]
        for side, (speed, _) in enumerate(results):
            speeds[side].append(speed)
        memory = [result[1] for result in results]
    ratio = statistics.median(new / old for old, new in zip(*speeds, strict=True))
    return [model, threads, *(f"{statistics.median(values):,.0f}" for values in speeds),
            f"{ratio:.2f}", *(f"{value:.2f}" for value in memory)]


def train(checkout, model, threads, steps, work, name):
    """Rays per second and peak memory in GB of a short training."""
    interval = max(1, steps // 10)
    command = [sys.executable, "train.py", "--preset", "laptop", "--model", model,
               "--scene", "demo", "--data_dir", str(work / "data"), "--log_dir", str(work),
               "--exp_name", name,
               "--device", "cpu", "--seed", "0", "--max_steps", str(steps), "--eval_every", "0",
               "--no-final_eval", "--log_every", str(interval), "--save_every", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} ended with status {result.returncode} in {checkout}; "
                        f"its last line: {result.stderr.strip().splitlines()[-1:]}.")
    lines = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "rays_per_second" in line]
    later = lines[len(lines) // 2 :]
    return (statistics.median(line["rays_per_second"] for line in later),
            max(line["memory_gb"] for line in lines))


if __name__ == "__main__":
    run_script(main)
