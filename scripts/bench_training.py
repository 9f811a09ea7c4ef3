"""Test PSNR against steps and seconds of training: a Markdown table from run folders.

    python train.py --preset demo --scene lego --factor 2 --keep_checkpoints 100 --save_every 500
    python scripts/bench_training.py log/blender_lego_mipnerf

Scores the whole test split at every checkpoint that the folders hold, as `evaluate.py` does.
Seconds are those of the training steps, as the run's `metrics.jsonl` counted them on its device.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from checkpoint import list_checkpoints, load_checkpoint  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import evaluate  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.run_log import read_metrics  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--chunk", type=int, help="rays rendered at once")
    args = parser.parse_args()
    tables = [score_run(folder, args) for folder in args.runs]
    print("\n\n".join(tables))


def score_run(folder, args):
    """The table of one run folder."""
    seconds = read_seconds(folder)
    rows, scores = [], None
    for path in reversed(list_checkpoints(folder)):
        run = load_checkpoint(path, args.device)
        if run.step == 0:
            continue
        config = run.config
        config.chunk, config.save_images = args.chunk, False
        dataset = load_dataset(config, "test", select_device(config), read_pixels=False)
        scores = evaluate(run.model, dataset, config, run.step, folder / f"bench_{run.step:08d}")
        rows.append(row(run.step, seconds(run.step), scores))
        print(rows[-1], file=sys.stderr, flush=True)
    if not rows:
        raise UserError(f"{folder} holds no checkpoint; give run folders of train.py.")
    samples = f"{config.prop_rounds} x {config.prop_samples} + {config.num_samples}"
    if config.model == "mipnerf":
        samples = f"{config.num_levels} x {config.num_samples}"
    scales = "".join(f" 1/{2**scale} dB |" for scale in scores["scales"])
    title = (f"{Path(config.scene).name} ({config.dataset_name}, factor {config.factor}): "
             f"{config.model}, network {config.depth} x {config.hidden}, {samples} samples, "
             f"batch {config.batch_size}, seed {config.seed}, "
             f"{scores['precision']} on {scores['device']}, commit {scores['commit']}; a blank "
             f"picture has {scores['blank_psnr']:.2f} dB")
    return "\n".join([
        title, "", f"| steps | seconds | PSNR dB | SSIM |{scales}",
        "| --- | --- | --- | --- |" + " --- |" * len(scores["scales"]), *rows,
    ])


def row(step, seconds, scores):
    """A line of the table."""
    scales = "".join(f" {values['psnr']:.2f} |" for values in scores["scales"].values())
    return f"| {step} | {seconds:.0f} | {scores['psnr']:.2f} | {scores['ssim']:.4f} |{scales}"


def read_seconds(folder):
    """A function that gives the seconds of training at a step, between the run's scalars."""
    try:
        lines = read_metrics(folder / "metrics.jsonl")
    except OSError:
        raise UserError(f"{folder} holds no metrics.jsonl; give run folders of train.py.") from None
    steps, seconds = ([0] + [line[key] for line in lines] for key in ("step", "seconds"))
    return lambda step: np.interp(step, steps, seconds)


if __name__ == "__main__":
    run_script(main)
