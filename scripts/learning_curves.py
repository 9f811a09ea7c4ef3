"""PSNR of the test views after some numbers of steps, of one training in several checkouts.

    python scripts/learning_curves.py ../before ../after --work /tmp/curves \
        --flags="--model zipnerf --preset laptop --scene demo"

Prints a table with a row per checkout (a folder with a copy of the project). Each trains until the
last of `--steps` with the same flags; every checkpoint is scored by the code that wrote it. Results
are kept in `--work`; a row that is there is not trained again.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    flags, steps = shlex.split(args.flags), sorted(args.steps)
    print(f"| checkout | {' | '.join(f'{step:,} steps' for step in steps)} |")
    print("| --- |" + " --- |" * len(steps))
    for checkout in args.checkouts:
        scores = learning_curve(checkout.resolve(), args.work.resolve(), flags, steps)
        print(f"| {checkout.name} | {' | '.join(f'{psnr:.2f}' for psnr in scores)} |", flush=True)


def learning_curve(checkout: Path, work: Path, flags: list[str], steps: list[int]) -> list[float]:
    """The test PSNR in dB after each number of `steps`."""
    run = work / f"{checkout.name}_{'_'.join(flags).strip('-').replace('/', '.')}"
    names = [f"{step:08d}" for step in steps]
    if not run.exists():
        run_script(checkout, "train.py", *flags, "--log_dir", str(work), "--exp_name", run.name,
                   "--max_steps", str(steps[-1]), "--save_every", str(math.gcd(*steps)),
                   "--keep_checkpoints", str(steps[-1]), "--eval_every", "0", "--no-final_eval")
        for path in run.glob("checkpoint_*.pt"):
            if path.stem.removeprefix("checkpoint_") not in names:
                path.unlink()
        run_script(checkout, "scripts/bench_training.py", str(run))
    return [json.loads((run / f"bench_{name}" / "scores.json").read_text())["psnr"]
            for name in names]


def run_script(checkout: Path, *command: str) -> None:
    """Run a script of a checkout; exits with its output if it fails."""
    done = subprocess.run([sys.executable, *command], cwd=checkout, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed in {checkout}:\n{done.stdout}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER",
                        help="where runs are kept")
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 2000])
    parser.add_argument("--flags", required=True, help="flags of the training, in quotes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
