"""Seconds and memory of opening a large Blender scene, which is written to a temporary folder.

    python scripts/bench_loading.py --views 100 --size 800

Opens it in a process of its own and prints its peak memory (with and without the imports) and
the time of the opening and of a batch of 4096 rays.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from config import default_config  # noqa: E402
from datasets import load_dataset  # noqa: E402
from image_utils import write_image  # noqa: E402
from memory import peak_memory  # noqa: E402

CPU = torch.device("cpu")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=100)
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(open_scene(args.open)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder), args.views, args.size)
        command = [sys.executable, __file__, "--open", folder]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(f"{args.views} views of {args.size}x{args.size} RGBA: opened in "
          f"{found['seconds']:.1f} s, "
          f"peak memory {found['memory']:.2f} GB of which imports {found['imports']:.2f} GB; "
          f"a batch of 4096 rays in {1000 * found['batch']:.1f} ms")


def write_scene(folder, views, size):
    """Views of a noisy disc; their poses are those of a circle."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = (x**2 + y**2 < 0.16)[..., None]
    (folder / "train").mkdir()
    frames = []
    for i in range(views):
        colour = np.kron(rng.integers(0, 256, (size // 8, size // 8, 3)), np.ones((8, 8, 1)))
        image = np.concatenate([colour, np.full((size, size, 1), 255)], axis=-1) * disc
        write_image(folder / "train" / f"r_{i}.png", image.astype(np.uint8))
        a = 2 * np.pi * i / views
        pose = [[np.cos(a), 0, np.sin(a), 4 * np.sin(a)], [0, 1, 0, 0],
                [-np.sin(a), 0, np.cos(a), 4 * np.cos(a)], [0, 0, 0, 1]]
        frames.append({"file_path": f"train/r_{i}", "transform_matrix": pose})
    meta = {"camera_angle_x": 0.69, "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(meta))


def open_scene(folder):
    """What opening costs this process."""
    imports = peak_memory(CPU) / 1e9
    begin = time.perf_counter()
    dataset = load_dataset(default_config(scene=str(folder)), "train")
    seconds = time.perf_counter() - begin
    dataset.batch(4096)
    begin = time.perf_counter()
    for _ in range(20):
        dataset.batch(4096, torch.Generator().manual_seed(0))
    return {"seconds": seconds, "imports": imports, "memory": peak_memory(CPU) / 1e9,
            "batch": (time.perf_counter() - begin) / 20}


if __name__ == "__main__":
    main()
