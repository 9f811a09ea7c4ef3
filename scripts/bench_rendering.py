"""Speed and quality of the exact path, of skipping empty space, and of the fast path: a table.

    python scripts/bench_rendering.py log/demo log/lego --views 4
    python scripts/bench_rendering.py log/lego --size 800 800

Renders views of the test split by each path in turn, in one process. PSNR is against the
photographs, so the dataset is needed, and against the exact path. `--size` renders other sizes of
the same cameras, which are compared with the exact path only. `--num_samples` overrides the number
of samples per ray of the first two.
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int  # noqa: E402
from datasets import load_dataset  # noqa: E402
from image_utils import psnr, quantize  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from rendering import Renderer, make_renderer  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
)

PATHS = ("exact", "skipping", "fast")


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--num_samples", type=positive_int,
                        help="intervals per ray of the finest level")
    parser.add_argument("--factor", type=positive_int, help="downsampling factor of the images")
    parser.add_argument("--size", type=positive_int, nargs=2, metavar=("W", "H"),
                        help="size of the images, instead of the photographs'")
    parser.add_argument("--views", type=positive_int, default=4,
                        help="number of test views, evenly spaced")
    args = parser.parse_args(argv)
    print(f"{environment_line()}\n")
    columns = ["run", "frame", "samples"]
    for path in PATHS:
        columns += [f"{path}: s", "dB"]
    print(table_head([*columns, "fast beside exact: dB", "speed-up", "grid: s", "occupied"]))
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
    scene = run.scene["train"].to(device)
    fast = make_renderer(model, scene)  # Compiles the kernel, if nobody has.
    begin = time.perf_counter()
    fast = make_renderer(model, scene)
    grid_seconds = time.perf_counter() - begin
    renderers = {"exact": Renderer(model), "skipping": make_renderer(model, scene, exact=True)}
    if fast.marcher is not None:
        renderers["fast"] = fast
    index = np.linspace(0, len(test) - 1, args.views).round().astype(int)
    seconds, scores, beside, (height, width) = time_views(renderers, test, index, args.size)
    row = [folder.name, f"{width}x{height}", model.num_samples]
    for path in PATHS:
        row += [f"{seconds[path]:.3f}", f"{scores[path]:.3f}"] if path in renderers else ["", ""]
    fastest = min(seconds.values())
    return table_row([
        *row, f"{beside['fast']:.1f}" if "fast" in renderers else "",
        f"{seconds['exact'] / fastest:.1f}", f"{grid_seconds:.1f}",
        f"{fast.marcher.grid.occupied_fraction:.0%}" if "fast" in renderers else ""])


def time_views(renderers, dataset, indices, size):
    """Median seconds, mean PSNR against the photographs and against the exact path, by renderer."""
    seconds, scores, beside = ({name: [] for name in renderers} for _ in range(3))
    for i in indices:
        rays, photograph = view_rays(dataset, int(i), size)
        images = {}
        for name, renderer in renderers.items():
            begin = time.perf_counter()
            images[name] = quantize(renderer.render(rays).rgb)
            seconds[name].append(time.perf_counter() - begin)
            scores[name].append(np.nan if photograph is None else psnr(images[name], photograph))
            beside[name].append(psnr(images[name], images["exact"]))
    return ({name: statistics.median(values) for name, values in seconds.items()},
            *({name: float(np.mean(values)) for name, values in by_name.items()}
              for by_name in (scores, beside)), tuple(rays.shape))


def view_rays(dataset, index, size):
    """Rays of a view and its photograph, or None for another size."""
    if size is None:
        view = dataset.image(index)
        return view.rays, quantize(view.rgb)
    cameras = dataset.cameras[index : index + 1]
    scale = cameras.sizes / cameras.sizes.new_tensor([size])
    columns = torch.cat([scale, torch.ones_like(scale[:, :1])], dim=-1)
    cameras = replace(cameras, sizes=cameras.sizes.new_tensor([size]),
                      pixtocams=cameras.pixtocams * columns[:, None])
    return image_rays(cameras, 0), None


if __name__ == "__main__":
    run_script(main)
