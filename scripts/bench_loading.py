"""Seconds and memory for opening large Blender scenes, in memory and memory-mapped.

    python scripts/bench_loading.py --views 100 400 1600 --size 800

Writes scenes to a temporary folder and opens each in separate processes: with its images in memory,
with `--pixel_memory 0` (which writes the cache file), and so again (with the existing file). Each
then samples 100 batches of 4096 rays. Own memory is what the system cannot reclaim; touched pages
of the file count only in the peak. Prints a Markdown table.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from config import default_config, positive_int  # noqa: E402
from datasets import load_dataset  # noqa: E402
from image_utils import write_image  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    environment_line,
    make_parser,
    run_case,
    table_head,
    table_row,
)

CPU = torch.device("cpu")

# Number of distinct images of a scene; the others are links to them.
NUM_DISTINCT = 8

# `--pixel_memory` of each mode of loading, in GB.
MODES = {"in memory": 1e9, "memory-mapped, first time": 0.0, "memory-mapped": 0.0}

# Batches that are sampled, and their rays.
NUM_BATCHES, BATCH_SIZE = 100, 4096


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--views", type=positive_int, nargs="+", default=[100])
    parser.add_argument("--size", type=positive_int, default=800)
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.open:
        print(json.dumps(open_scene(args.open[0], float(args.open[1]))))
        return
    print(f"{environment_line()}, {os.cpu_count()} cores, RGBA images of "
          f"{args.size}x{args.size}\n")
    print(table_head(["views", "GB", "images", "opened in s", "own memory GB", "peak GB",
                      "batch ms"]))
    for views in args.views:
        with tempfile.TemporaryDirectory() as folder:
            write_scene(Path(folder), views, args.size)
            for mode in MODES:
                print(measure(folder, views, args.size, mode), flush=True)


def measure(folder, views, size, mode):
    """Table row: load a scene in one mode, in a new process."""
    result = run_case(
        [sys.executable, __file__, "--open", folder, str(MODES[mode])],
        f"{views} images could not be opened {mode} (see above); give fewer --views or a smaller "
        "--size.")
    return table_row([views, f"{4e-9 * views * size**2:.2f}", mode, f"{result['seconds']:.1f}",
                      f"{result['own']:.2f}", f"{result['peak']:.2f}",
                      f"{1000 * result['batch']:.1f}"])


def write_scene(folder, views, size):
    """Write a Blender scene: views of a noisy disc from a circle, a few of them distinct."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir()
    frames = []
    for i in range(views):
        file = folder / "train" / f"r_{i}.png"
        if i < NUM_DISTINCT:
            write_image(file, noisy_disc(rng, size))
        else:
            os.link(folder / "train" / f"r_{i % NUM_DISTINCT}.png", file)
        a = 2 * np.pi * i / views
        pose = [[np.cos(a), 0, np.sin(a), 4 * np.sin(a)], [0, 1, 0, 0],
                [-np.sin(a), 0, np.cos(a), 4 * np.cos(a)], [0, 0, 0, 1]]
        frames.append({"file_path": f"train/r_{i}", "transform_matrix": pose})
    meta = {"camera_angle_x": 0.69, "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(meta))


def noisy_disc(rng, size):
    """An opaque disc of random 8x8 tiles on a transparent background, uint8 RGBA."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = (x**2 + y**2 < 0.16)[..., None]
    tiles = rng.integers(0, 256, (-(-size // 8), -(-size // 8), 3))
    colour = np.kron(tiles, np.ones((8, 8, 1)))[:size, :size]
    image = np.concatenate([colour, np.full((size, size, 1), 255)], axis=-1) * disc
    return image.astype(np.uint8)


def open_scene(folder, pixel_memory):
    """Seconds and GB for opening a scene and sampling batches in this process, without imports."""
    imports, peak_before = own_memory(), peak_memory(CPU) / 1e9
    begin = time.perf_counter()
    dataset = load_dataset(default_config(scene=folder, pixel_memory=pixel_memory), "train")
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for i in range(NUM_BATCHES):
        dataset.batch(BATCH_SIZE, torch.Generator().manual_seed(i))
    return {"seconds": seconds, "own": own_memory() - imports,
            "peak": peak_memory(CPU) / 1e9 - peak_before,
            "batch": (time.perf_counter() - begin) / NUM_BATCHES}


def own_memory():
    """GB of this process that are not backed by a file (Linux only)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1e6


if __name__ == "__main__":
    run_script(main)
