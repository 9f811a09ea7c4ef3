"""What passing over empty space saves, and what it costs in quality: a Markdown table.

    python scripts/bench_rendering.py log/demo log/lego --views 4

Views of the test split are rendered whole and with empty space passed over, in turn, in one
process; PSNR is against the photographs, so the data must be there. With `--num_samples` rays are
sampled as often as that, whatever they were trained with.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int  # noqa: E402
from datasets import load_dataset  # noqa: E402
from image_utils import psnr, quantize  # noqa: E402
from ray_utils import reached_box  # noqa: E402
from rendering import build_occupancy, render_image  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--num_samples", type=positive_int,
                        help="intervals per ray of the finest level")
    parser.add_argument("--factor", type=positive_int, help="downscaling of the images")
    parser.add_argument("--views", type=positive_int, default=4,
                        help="of the test split, evenly chosen")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    args = parser.parse_args(argv)
    print(f"commit {git_commit()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| run | frame | samples | whole: s | dB | skipping: s | dB | times as fast | grid: s | "
          "of it occupied |\n|" + " --- |" * 10)
    for run in args.runs:
        print(measure(run, args), flush=True)
    return 0


def measure(run, args):
    """The row of a run."""
    device = select_device(args)
    loaded = load_checkpoint(run, device)
    config, model = loaded.config, loaded.model
    config.data_dir, config.factor = args.data_dir, args.factor or config.factor
    if args.num_samples == 1 and config.model != "mipnerf":
        raise UserError(f"--num_samples 1 is too few for {run}, a {config.model}; give at least 2.")
    if args.num_samples:
        model.num_samples = model.max_samples_per_level = args.num_samples
    test = load_dataset(config, "test", device, read_pixels=False)
    begin = time.perf_counter()
    box = reached_box(loaded.scene["train"]).to(device)
    occupancy = build_occupancy(model, box, num_rays=10**9)
    making = time.perf_counter() - begin
    seconds, scores = {True: [], False: []}, {True: [], False: []}
    for index in np.linspace(0, len(test) - 1, args.views).round().astype(int):
        view = test.image(int(index))
        for skips in (False, True):
            begin = time.perf_counter()
            output = render_image(model, view.rays, occupancy=occupancy if skips else None)
            rgb = quantize(output.rgb)
            seconds[skips].append(time.perf_counter() - begin)
            scores[skips].append(psnr(rgb, quantize(view.rgb)))
    whole, skipping = (statistics.median(seconds[skips]) for skips in (False, True))
    height, width = view.rgb.shape[:2]
    occupied = 1.0
    if occupancy is not None:
        occupied = float((occupancy.density > 0).float().mean())
    return (f"| {run.name} | {width}x{height} | {model.num_samples} | {whole:.2f} "
            f"| {np.mean(scores[False]):.3f} | {skipping:.2f} | {np.mean(scores[True]):.3f} "
            f"| {whole / skipping:.1f} | {making:.1f} | {occupied:.0%} |")


if __name__ == "__main__":
    run_script(main)
