"""The speed-up of empty-space skipping and its effect on quality: a Markdown table.

    python scripts/bench_rendering.py log/demo log/lego --views 4

Renders views of the test split with and without skipping, alternating in one process. PSNR is
against the photographs, so the dataset is needed. `--num_samples` overrides the number of samples
per ray.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int  # noqa: E402
from datasets import load_dataset  # noqa: E402
from image_utils import psnr, quantize  # noqa: E402
from ray_utils import reached_box  # noqa: E402
from rendering import build_occupancy, render_image  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
)


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--num_samples", type=positive_int,
                        help="intervals per ray of the finest level")
    parser.add_argument("--factor", type=positive_int, help="downsampling factor of the images")
    parser.add_argument("--views", type=positive_int, default=4,
                        help="number of test views, evenly spaced")
    args = parser.parse_args(argv)
    print(f"{environment_line()}\n")
    print(table_head(["run", "frame", "samples", "no skipping: s", "dB", "skipping: s", "dB",
                      "speed-up", "grid: s", "occupied"]))
    for run in args.runs:
        print(measure(run, args), flush=True)
    return 0


def measure(folder, args):
    """The table's row of a run."""
    device = select_device(args)
    run = load_checkpoint(folder, device)
    model = run.model
    config = run.config.replace(data_dir=args.data_dir, factor=args.factor or run.config.factor)
    if args.num_samples == 1 and config.model != "mipnerf":
        raise UserError(f"--num_samples 1 is too few for {folder}, a {config.model}; give at least "
                        "2.")
    if args.num_samples:
        model.num_samples = model.max_samples_per_level = args.num_samples
    test = load_dataset(config, "test", device, read_pixels=False)
    begin = time.perf_counter()
    box = reached_box(run.scene["train"]).to(device)
    occupancy = build_occupancy(model, box, num_rays=10**9)
    grid_seconds = time.perf_counter() - begin
    index = np.linspace(0, len(test) - 1, args.views).round().astype(int)
    (whole, whole_psnr), (skipping, skipping_psnr) = time_views(model, test, index, occupancy)
    width, height = test.cameras.sizes[index[-1]].tolist()
    occupied = 1.0 if occupancy is None else float((occupancy.density > 0).float().mean())
    return table_row([
        folder.name, f"{width}x{height}", model.num_samples, f"{whole:.2f}", f"{whole_psnr:.3f}",
        f"{skipping:.2f}", f"{skipping_psnr:.3f}", f"{whole / skipping:.1f}",
        f"{grid_seconds:.1f}", f"{occupied:.0%}"])


def time_views(model, dataset, indices, occupancy):
    """Pairs of median seconds and mean PSNR over some views: without and with skipping."""
    seconds, scores = ([], []), ([], [])
    for i in indices:
        view = dataset.image(int(i))
        for mode, grid in enumerate((None, occupancy)):
            begin = time.perf_counter()
            rgb = quantize(render_image(model, view.rays, occupancy=grid).rgb)
            seconds[mode].append(time.perf_counter() - begin)
            scores[mode].append(psnr(rgb, quantize(view.rgb)))
    return [(statistics.median(s), float(np.mean(p))) for s, p in zip(seconds, scores, strict=True)]


if __name__ == "__main__":
    run_script(main)
