"""Test PSNR against steps and seconds of training: a Markdown table for each run folder.

    python train.py --scene lego --factor 2 --keep_checkpoints 100 --save_every 500
    python scripts/bench_training.py log/blender_lego_mipnerf

Scores the whole test split at every checkpoint of a run, as `evaluate.py` does. Seconds are those
of the training steps only, from the run's `metrics.jsonl`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoint import list_checkpoints, load_checkpoint  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import evaluate  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    make_parser,
    table_head,
    table_row,
    training_seconds,
)


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--chunk", type=int, help="rays rendered at once")
    args = parser.parse_args(argv)
    print("\n\n".join([score_run(folder, args) for folder in args.runs]))


def score_run(folder, args):
    """The title and table of one run folder."""
    seconds_at = training_seconds(folder)
    rows, scores = [], None
    for path in reversed(list_checkpoints(folder)):
        run = load_checkpoint(path, args.device)
        if run.step == 0:
            continue
        config = run.config.replace(chunk=args.chunk, save_images=False)
        dataset = load_dataset(config, "test", select_device(config), read_pixels=False)
        scores = evaluate(run.model, dataset, config, run.step, folder / f"bench_{run.step:08d}")
        rows.append(score_row(run.step, seconds_at(run.step), scores))
        print(rows[-1], file=sys.stderr, flush=True)
    if not rows:
        raise UserError(f"{folder} holds no checkpoint; give run folders of train.py.")
    columns = ["steps", "seconds", "PSNR dB", "SSIM",
               *(f"1/{2**scale} dB" for scale in scores["scales"])]
    return "\n".join([title(config, scores), "", table_head(columns), *rows])


def title(config, scores):
    """Scene, model, sizes and provenance of a run."""
    samples = f"{config.prop_rounds} x {config.prop_samples} + {config.num_samples}"
    if config.model == "mipnerf":
        samples = f"{config.num_levels} x {config.num_samples}"
    return (f"{Path(config.scene).name} ({config.dataset_name}, factor {config.factor}): "
            f"{config.model}, network {config.depth} x {config.hidden}, {samples} samples, "
            f"batch {config.batch_size}, seed {config.seed}, {scores['precision']} on "
            f"{scores['device']}, commit {scores['commit']}; an image of the background alone has "
            f"{scores['blank_psnr']:.2f} dB")


def score_row(step, seconds, scores):
    """A line of the table."""
    return table_row([step, f"{seconds:.0f}", f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}",
                      *(f"{values['psnr']:.2f}" for values in scores["scales"].values())])


if __name__ == "__main__":
    run_script(main)
