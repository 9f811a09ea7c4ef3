"""Seconds and memory of opening large Blender scenes, with the pictures in memory and on disk.

    python scripts/bench_loading.py --views 100 400 1600 --size 800

The scenes are written to a temporary folder. Each is opened in processes of their own: with its
pictures in memory, with `--pixel_memory 0` (which writes them to a file), and so again (where the
file is there). Then 100 batches of 4096 rays are drawn. Own memory is what the system cannot take
back; touched parts of the file count only in the peak. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
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
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402

CPU = torch.device("cpu")
DIFFERENT = 8
IN_MEMORY = 1e9
WAYS = {"in memory": IN_MEMORY, "on disk, first time": 0.0, "on disk": 0.0}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=positive_int, nargs="+", default=[100])
    parser.add_argument("--size", type=positive_int, default=800)
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(open_scene(args.open[0], float(args.open[1]))))
        return
    print(f"commit {git_commit()}, torch {torch.__version__}, {os.cpu_count()} cores, "
          f"RGBA images of {args.size}x{args.size}\n")
    print("| views | GB | pictures | opened in s | own memory GB | peak GB | batch ms |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for views in args.views:
        with tempfile.TemporaryDirectory() as folder:
            write_scene(Path(folder), views, args.size)
            for way, pixel_memory in WAYS.items():
                command = [sys.executable, __file__, "--open", folder, str(pixel_memory)]
                result = subprocess.run(command, stdout=subprocess.PIPE)
                if result.returncode:
                    raise UserError(f"{views} pictures could not be opened {way}, as said above; "
                                    "take fewer --views or a smaller --size.")
                found = json.loads(result.stdout.splitlines()[-1])
                print(f"| {views} | {4e-9 * views * args.size**2:.2f} | {way} | "
                      f"{found['seconds']:.1f} | {found['own']:.2f} | {found['peak']:.2f} | "
                      f"{1000 * found['batch']:.1f} |", flush=True)


def write_scene(folder, views, size):
    """Views of a noisy disc, a few of them different; their poses are those of a circle."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = (x**2 + y**2 < 0.16)[..., None]
    (folder / "train").mkdir()
    frames = []
    for i in range(views):
        file = folder / "train" / f"r_{i}.png"
        if i < DIFFERENT:
            tiles = rng.integers(0, 256, (-(-size // 8), -(-size // 8), 3))
            colour = np.kron(tiles, np.ones((8, 8, 1)))[:size, :size]
            image = np.concatenate([colour, np.full((size, size, 1), 255)], axis=-1) * disc
            write_image(file, image.astype(np.uint8))
        else:
            os.link(folder / "train" / f"r_{i % DIFFERENT}.png", file)
        a = 2 * np.pi * i / views
        pose = [[np.cos(a), 0, np.sin(a), 4 * np.sin(a)], [0, 1, 0, 0],
                [-np.sin(a), 0, np.cos(a), 4 * np.cos(a)], [0, 0, 0, 1]]
        frames.append({"file_path": f"train/r_{i}", "transform_matrix": pose})
    meta = {"camera_angle_x": 0.69, "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(meta))


def open_scene(folder, pixel_memory):
    """What opening and drawing cost this process, without its imports."""
    imports, peak_before = own_memory(), peak_memory(CPU) / 1e9
    begin = time.perf_counter()
    dataset = load_dataset(default_config(scene=folder, pixel_memory=pixel_memory), "train")
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for i in range(100):
        dataset.batch(4096, torch.Generator().manual_seed(i))
    return {"seconds": seconds, "own": own_memory() - imports,
            "peak": peak_memory(CPU) / 1e9 - peak_before,
            "batch": (time.perf_counter() - begin) / 100}


def own_memory():
    """GB of the process that no file stands for (Linux tells)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1e6


if __name__ == "__main__":
    run_script(main)
