"""Rays per second of training and rendering, beside what the products and encodings alone allow.

    python scripts/bench_throughput.py                   all models but nerv, as they are by default
    python scripts/bench_throughput.py --presets demo demo360 demozip
    python scripts/bench_throughput.py --models mipnerf --precisions fp32 bf16

For each case, in turn and several rounds: a training step, rendering, and their bounds: the matrix
products of the same sizes, and for hash grids the lookups of as many points, and nothing else. Each
case runs in a process of its own, so that its peak memory is its own. Prints a Markdown table of
medians.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from config import PRESETS, default_config, get_config, positive_int  # noqa: E402
from fields import hash_grid  # noqa: E402
from fields.hash import HashField  # noqa: E402
from model import MODELS, build_model  # noqa: E402
from rendering import render_image  # noqa: E402
from runtime.devices import has_fast_bf16, select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402
from structures import Batch, Rays  # noqa: E402
from train import compute_gradients, default_micro_batch, make_optimizer  # noqa: E402

# NeRV's rays want lights, and its steps change from stage to stage.
NAMES = sorted(set(MODELS) - {"nerv"})
PRESET_NAMES = sorted(p for p, flags in PRESETS.items() if flags.get("model") != "nerv")

MIN_SECONDS = 3.0
BOX = torch.tensor([[-2.0] * 3, [2.0] * 3])


def main():
    args = parse_args()
    device = select_device(default_config(device=args.device))
    if args.case:
        print(json.dumps(measure(args, device)))
        return
    kinds = [("preset", p) for p in args.presets] or [("model", m) for m in args.models]
    cases = list(itertools.product(kinds, args.precisions, args.batch_sizes))
    results = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            results[case].append(run_case(args, *case))
    print_table(results, args, device)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    kinds.add_argument("--presets", nargs="+", choices=PRESET_NAMES, default=[],
                       help="instead of models as they are by default")
    parser.add_argument("--batch_sizes", type=positive_int, nargs="+", default=[256])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"],
                        help="bf16 takes very long without hardware for it")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_case(args, kind, precision, batch_size):
    """One case in a fresh process, which says by itself what went wrong."""
    command = [sys.executable, __file__, "--case", *kind, "--precisions", precision,
               "--batch_sizes", str(batch_size), "--device", args.device]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        raise UserError(f"{' '.join(kind)} in {precision} with {batch_size} rays could not be "
                        "measured, as said above; leave it out.")
    # What else was printed, as of a part of a batch that was halved, stands before.
    return json.loads(found.stdout.splitlines()[-1])


def measure(args, device):
    """Rays per second of training, rendering and their bounds, and the peak memory in GB."""
    kind, name = args.case
    config = get_config([f"--{kind}", name, "--precision", args.precisions[0],
                         "--device", args.device])
    rays = args.batch_sizes[0]
    config.micro_batch = config.micro_batch or default_micro_batch(config, device)
    model = build_model(config, device, BOX)
    batch = make_batch(rays, device)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6

    def train_step():
        compute_gradients(model.train(), batch, config, 0.5)
        optimizer.step()

    def render():
        render_image(model.eval(), batch.rays)

    trained = rays_per_second(train_step, rays, device)
    memory = peak_memory(device) / 1e9
    rendered = rays_per_second(render, rays, device)
    part = min(config.micro_batch, rays)
    return {
        "train": trained, "render": rendered, "memory": memory,
        "train_bound": rays_per_second(necessary(model, part, device, True), part, device),
        "render_bound": rays_per_second(necessary(model, part, device, False), part, device),
    }


def make_batch(size, device):
    """Random rays like those of a Blender scene."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(size, 3, generator=generator)
    one = torch.ones(size, 1)
    rays = Rays(origins=4 * torch.nn.functional.normalize(-directions, dim=-1),
                directions=torch.nn.functional.normalize(directions, dim=-1),
                viewdirs=torch.nn.functional.normalize(directions, dim=-1),
                radii=0.001 * one, near=2 * one, far=6 * one, lossmult=one,
                cam_idx=torch.zeros(size, 1).long())
    return Batch(rays=rays, rgb=torch.rand(size, 3, generator=generator)).to(device)


def necessary(model, rays, device, training):
    """A function that does what a step on `rays` rays cannot do without, and nothing else."""
    if hasattr(model, "prop_rounds"):
        levels = [(model._proposal(i), model.prop_samples) for i in range(model.prop_rounds)]
        levels.append((model.field, model.num_samples))
    else:
        levels = model.num_levels * [(model.field, model.num_samples)]
    calls = [products(field, rays * samples, device, training) for field, samples in levels]
    calls += [lookups(field, rays * samples, device, training) for field, samples in levels
              if isinstance(field, HashField)]

    def call():
        for work in calls:
            work()

    return call


def products(field, rows, device, training):
    """The matrix products of a field for so many samples.

    Rendering multiplies each layer's input by its weights; training also the output's gradient by
    the weights (but for the first layer of an MLP, whose input needs none) and by the input.
    """
    dtype = field.compute_dtype
    layers = [tuple(layer.weight.shape) for layer in field.layers()]
    inputs = [torch.randn(rows, n, device=device).to(dtype) for _, n in layers]
    outputs = [torch.randn(rows, m, device=device).to(dtype) for m, _ in layers]
    weights = [torch.randn(m, n, device=device).to(dtype) for m, n in layers]
    first = 0 if isinstance(field, HashField) else 1

    def call():
        for i, (x, y, w) in enumerate(zip(inputs, outputs, weights, strict=True)):
            x @ w.t()
            if training:
                y.t() @ x
                if i >= first:
                    y @ w

    return call


def lookups(field, rows, device, training):
    """The grid's encodings of so many samples, at points along rays, and their gradient."""
    members = field.num_multisamples
    along = torch.linspace(0, 1, rows * members, device=device)
    points = torch.stack([along, 1 - along, (7 * along) % 1], dim=-1).reshape(rows, members, 3)
    weights = torch.ones(rows, members, len(field.levels.num_entries), device=device)
    table = field.table.detach().clone().requires_grad_(training)

    def call():
        found = hash_grid.encode(points, weights, table, field.levels)
        if training:
            found.sum().backward()
            table.grad = None

    return call


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


def print_table(results, args, device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, bf16 products in hardware: "
        f"{'yes' if has_fast_bf16(device) else 'no'}")
    print(f"commit {git_commit()}, torch {torch.__version__}, {name}; seed 0, medians of "
          f"{args.rounds} rounds\n")
    print("| model | precision | batch | training rays/s | bound | share | "
          "rendering rays/s | bound | share | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for ((_, name), precision, batch_size), rounds in results.items():
        m = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        shares = {kind: statistics.median(r[kind] / r[f"{kind}_bound"] for r in rounds)
                  for kind in ("train", "render")}
        print(f"| {name} | {precision} | {batch_size} | {m['train']:,.0f} | "
              f"{m['train_bound']:,.0f} | {shares['train']:.0%} | {m['render']:,.0f} | "
              f"{m['render_bound']:,.0f} | {shares['render']:.0%} | {m['memory']:.2f} |")


if __name__ == "__main__":
    run_script(main)
