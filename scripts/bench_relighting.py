"""Scores of held-out views under held-out lights: a Markdown table from run folders.

    python scripts/bench_relighting.py log/nerv_demo_nerv log/nerv_demo_zipnerf

For each run and each set of lights the whole test split, as `evaluate.py` scores it. Where what is
true is known, as of the demo scene, and the model tells it: albedo's error after the best scale of
each channel, the angle to true normals, the mean errors of visibility and roughness.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import run_script  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import commit, evaluate  # noqa: E402
from model import select_device  # noqa: E402
from scripts.bench_training import read_seconds  # noqa: E402

COMPONENTS = {"albedo_rmse": ".3f", "normals_degrees": ".1f", "visibility_mae": ".3f",
              "roughness_mae": ".3f"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--lights", nargs="+", choices=["point", "env"], default=["point", "env"])
    parser.add_argument("--shade_at", choices=["samples", "surface"], help="as in evaluate.py")
    parser.add_argument("--march_shadows", action="store_true", help="as in evaluate.py")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    args = parser.parse_args()
    print(f"commit {commit()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| run | trained under | steps | seconds | seed | tested under | shaded at | PSNR dB | "
          f"SSIM | {' | '.join(COMPONENTS)} |\n|{' --- |' * (9 + len(COMPONENTS))}")
    for folder in args.runs:
        for lights in args.lights:
            print(score(folder, lights, args), flush=True)


def score(folder, lights, args):
    """The table's line of one run under one set of lights."""
    run = load_checkpoint(folder, args.device)
    config, trained_under = run.config, run.config.lights
    config.save_images, config.lights = False, lights
    config.shade_at, config.march_shadows = args.shade_at or config.shade_at, args.march_shadows
    run.model.set_rendering(config)
    shaded_at = config.shade_at + ", marched" * config.march_shadows
    dataset = load_dataset(config, "test", select_device(config), read_pixels=False)
    dataset.check_is(run.scene)
    out = folder / f"bench_{dataset.title}_{run.step:08d}"
    scores = evaluate(run.model, dataset, config, run.step, out)
    parts = (format(scores[name], form) if name in scores else ""
             for name, form in COMPONENTS.items())
    return (f"| {config.model} | {trained_under} | {run.step} | "
            f"{read_seconds(folder)(run.step):.0f} | {config.seed} | {lights} | "
            f"{shaded_at if config.model == 'nerv' else ''} | "
            f"{scores['psnr']:.2f} | {scores['ssim']:.3f} | {' | '.join(parts)} |")


if __name__ == "__main__":
    run_script(main)
