"""Rays per second of training and rendering, beside what matrix products alone would allow.

    python scripts/bench_throughput.py                    the paper's network, fp32 and bf16
    python scripts/bench_throughput.py --batch_sizes 256 1024 --rounds 5

For each precision and batch, in turn and several rounds: the matrix products of a step (same
sizes, nothing else), a training step, and rendering. Each case runs in a process of its own, so
that its peak memory is its own. Prints a Markdown table of medians.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from config import default_config  # noqa: E402
from evaluate import commit  # noqa: E402
from memory import peak_memory  # noqa: E402
from model import build_model, has_fast_bf16, render_image, select_device  # noqa: E402
from ray_utils import Batch, Rays  # noqa: E402
from train import compute_gradients  # noqa: E402

MIN_SECONDS = 4.0


def main():
    args = parse_args()
    if args.case:
        print(json.dumps(measure(args)))
        return
    results = {}
    for _ in range(args.rounds):
        for precision in args.precisions:
            for batch_size in args.batch_sizes:
                found = run_case(args, precision, batch_size)
                results.setdefault((precision, batch_size), []).append(found)
    print_table(results, args)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--micro_batch", type=int, default=128)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"],
                        default=["fp32", "bf16"], help="bf16 takes very long without hardware "
                        "for it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_case(args, precision, batch_size):
    """One case in a fresh process."""
    command = [sys.executable, __file__, "--case", "--precisions", precision, "--batch_sizes",
               str(batch_size), "--micro_batch", str(args.micro_batch), "--device", args.device]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(args):
    """Rays per second of products, training and rendering, and the peak memory in GB."""
    config = default_config(
        precision=args.precisions[0], device=args.device, micro_batch=args.micro_batch
    )
    device = select_device(config)
    model = build_model(config, device)
    batch = make_batch(args.batch_sizes[0], device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rays = args.batch_sizes[0]

    def train_step():
        compute_gradients(model.train(), batch, config, 0.0)
        optimizer.step()

    def render():
        render_image(model.eval(), batch.rays, args.micro_batch)

    trained = rays_per_second(train_step, rays, device)
    memory = peak_memory(device) / 1e9
    rendered = rays_per_second(render, rays, device)
    train_products, render_products = products(model, config, device)
    return {
        "train": trained, "render": rendered, "memory": memory,
        "train_bound": rays_per_second(train_products, config.micro_batch, device),
        "render_bound": rays_per_second(render_products, config.micro_batch, device),
    }


def make_batch(size, device):
    """Random rays like those of a Blender scene."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(size, 3, generator=generator)
    one = torch.ones(size, 1)
    rays = Rays(origins=4 * torch.nn.functional.normalize(-directions, dim=-1),
                directions=directions, viewdirs=torch.nn.functional.normalize(directions, dim=-1),
                radii=0.001 * one, near=2 * one, far=6 * one, lossmult=one,
                cam_idx=torch.zeros(size, 1).long())
    return Batch(rays=rays, rgb=torch.rand(size, 3, generator=generator)).to(device)


def products(model, config, device):
    """Functions that do a step's matrix products for a micro batch and nothing else.

    Rendering multiplies each layer's input by its weights; training also the output's gradient
    by the weights (but for the first layer, whose input needs none) and by the input.
    """
    rows = config.micro_batch * config.num_samples
    dtype = model.field.compute_dtype
    layers = [tuple(layer.weight.shape) for layer in model.field.layers()]
    inputs = [torch.randn(rows, n, device=device).to(dtype) for _, n in layers]
    outputs = [torch.randn(rows, m, device=device).to(dtype) for m, _ in layers]
    weights = [torch.randn(m, n, device=device).to(dtype) for m, n in layers]

    def forward():
        for x, w in zip(inputs, weights, strict=True):
            x @ w.t()

    def backward():
        for i, (x, y, w) in enumerate(zip(inputs, outputs, weights, strict=True)):
            y.t() @ x
            if i:
                y @ w

    def train():
        for _ in range(config.num_levels):
            forward()
            backward()

    def render():
        for _ in range(config.num_levels):
            forward()

    return train, render


def rays_per_second(call, rays, device):
    """The median over repeated calls, after one that warms up."""
    times = []
    call()
    begin = time.perf_counter()
    while time.perf_counter() - begin < MIN_SECONDS or len(times) < 2:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return rays / statistics.median(times)


def print_table(results, args):
    device = select_device(default_config(device=args.device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, bf16 products in hardware: "
        f"{'yes' if has_fast_bf16(device) else 'no'}")
    print(f"commit {commit()}, torch {torch.__version__}, {name}; the paper's network, seed 0, "
          f"micro batch {args.micro_batch}, medians of {args.rounds} rounds\n")
    print("| precision | batch | training rays/s | its products alone | share | "
          "rendering rays/s | its products alone | share | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (precision, batch_size), rounds in results.items():
        m = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        shares = {kind: statistics.median(r[kind] / r[f"{kind}_bound"] for r in rounds)
                  for kind in ("train", "render")}
        print(f"| {precision} | {batch_size} | {m['train']:.1f} | {m['train_bound']:.1f} | "
              f"{shares['train']:.0%} | {m['render']:.1f} | {m['render_bound']:.1f} | "
              f"{shares['render']:.0%} | {m['memory']:.2f} |")


if __name__ == "__main__":
    main()
