"""Rays per second of training and rendering, and upper bounds from their necessary operations.

    python scripts/bench_throughput.py                        all models but nerv, preset gpu
    python scripts/bench_throughput.py --preset laptop
    python scripts/bench_throughput.py --models mipnerf --precisions fp32 bf16

For each case, alternating over several rounds: a training step, rendering, and a bound for each,
which is the time of only the matrix multiplications of the same sizes and, for hash grids, the
lookups of as many points. Each case runs in a separate process, so that its peak memory is its own.
Prints a Markdown table of medians.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from config import default_config, get_config, positive_int  # noqa: E402
from fields import hash_grid  # noqa: E402
from fields.hash import HashField  # noqa: E402
from model import MODELS, build_model  # noqa: E402
from presets import PRESETS  # noqa: E402
from rendering import render_image  # noqa: E402
from runtime.devices import has_fast_bf16, select_device  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from scheduler import make_optimizer  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_device_flag,
    environment_line,
    make_parser,
    run_case,
    table_head,
    table_row,
)
from structures import Batch, Rays  # noqa: E402
from train import compute_gradients, default_micro_batch  # noqa: E402

# NeRV's rays need lights, and its steps change from stage to stage.
NAMES = sorted(set(MODELS) - {"nerv"})

# Least duration of a measurement.
MIN_SECONDS = 3.0

# The bounding box of hash grids.
BOX = torch.tensor([[-2.0] * 3, [2.0] * 3])


def main(argv=None):
    args = parse(argv)
    device = select_device(default_config(device=args.device))
    if args.case:
        print(json.dumps(measure(args, device)))
        return
    cases = list(itertools.product(args.models, args.precisions, args.batch_sizes))
    results = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case in cases:
            results[case].append(measure_in_process(args, *case))
    print_table(results, args, device)


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--preset", choices=PRESETS, default="gpu", help="size of the models")
    parser.add_argument("--batch_sizes", type=positive_int, nargs="+", default=[256])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"],
                        help="bf16 is very slow without hardware support")
    parser.add_argument("--rounds", type=positive_int, default=3)
    add_device_flag(parser)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# A case.


def measure_in_process(args, model, precision, batch_size):
    """The results of one case, measured in a new process."""
    command = [sys.executable, __file__, "--case", model, "--preset", args.preset,
               "--precisions", precision, "--batch_sizes", str(batch_size),
               "--device", args.device]
    return run_case(command, f"model {model} in {precision} with {batch_size} rays could not be "
                             "measured (see above); leave it out.")


def measure(args, device):
    """Rays per second of training, rendering and their bounds, and the peak memory in GB."""
    config = get_config(["--model", args.case, "--preset", args.preset,
                         "--precision", args.precisions[0], "--device", args.device])
    num_rays = args.batch_sizes[0]
    micro_batch = config.micro_batch or default_micro_batch(config, device)
    model = build_model(config, device, BOX)
    batch = make_batch(num_rays, device)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6

    def train_step():
        compute_gradients(model.train(), batch, config, 0.5, micro_batch)
        optimizer.step()

    def render():
        render_image(model.eval(), batch.rays)

    trained = rays_per_second(train_step, num_rays, device)
    memory = peak_memory(device) / 1e9
    rendered = rays_per_second(render, num_rays, device)
    part = min(micro_batch, num_rays)
    bounds = {name: rays_per_second(necessary_operations(model, part, device, training), part,
                                    device)
              for name, training in (("train_bound", True), ("render_bound", False))}
    return {"train": trained, "render": rendered, "memory": memory} | bounds


def make_batch(num_rays, device):
    """Random rays like those of a Blender scene."""
    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(num_rays, 3, generator=generator), dim=-1)
    ones = torch.ones(num_rays, 1)
    rays = Rays(origins=-4 * directions, directions=directions, viewdirs=directions,
                radii=0.001 * ones, near=2 * ones, far=6 * ones, lossmult=ones,
                cam_idx=torch.zeros(num_rays, 1).long())
    return Batch(rays=rays, rgb=torch.rand(num_rays, 3, generator=generator)).to(device)


def rays_per_second(call, num_rays, device):
    """The median over repeated calls, after one for warming up."""
    times = []
    call()
    begin = time.perf_counter()
    while time.perf_counter() - begin < MIN_SECONDS or len(times) < 2:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return num_rays / statistics.median(times)


# Bounds.


def necessary_operations(model, num_rays, device, training):
    """A function that runs only the operations that a step on `num_rays` rays cannot avoid."""
    if hasattr(model, "prop_rounds"):
        levels = [(model.proposal_field(i), model.prop_samples) for i in range(model.prop_rounds)]
        levels.append((model.field, model.num_samples))
    else:
        levels = model.num_levels * [(model.field, model.num_samples)]
    calls = [matrix_multiplications(field, num_rays * samples, device, training)
             for field, samples in levels]
    calls += [lookups(field, num_rays * samples, device, training) for field, samples in levels
              if isinstance(field, HashField)]

    def run_all():
        for call in calls:
            call()

    return run_all


def matrix_multiplications(field, rows, device, training):
    """A function without arguments that runs a field's matrix multiplications for `rows` samples.

    Rendering multiplies each layer's input by its weights. Training also multiplies the output's
    gradient by the weights (except in the first layer of an MLP, whose input needs no gradient) and
    by the input.
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
    """A function that encodes `rows` samples along rays by a field's grid, and differentiates."""
    count = field.num_multisamples
    t = torch.linspace(0, 1, rows * count, device=device)
    points = torch.stack([t, 1 - t, (7 * t) % 1], dim=-1).reshape(rows, count, 3)
    weights = torch.ones(rows, count, len(field.levels.num_entries), device=device)
    table = field.table.detach().clone().requires_grad_(training)

    def call():
        features = hash_grid.encode(points, weights, table, field.levels)
        if training:
            features.sum().backward()
            table.grad = None

    return call


# The table.


def print_table(results, args, device):
    """Print the medians of all cases over the rounds."""
    print(f"{environment_line()}, {hardware(device)}; preset {args.preset}, seed 0, medians of "
          f"{args.rounds} rounds\n")
    print(table_head(["model", "precision", "batch", "training rays/s", "bound", "of bound",
                      "rendering rays/s", "bound", "of bound", "peak GB"]))
    for (model, precision, batch_size), rounds in results.items():
        median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        ratio = {kind: statistics.median(r[kind] / r[f"{kind}_bound"] for r in rounds)
                 for kind in ("train", "render")}
        rates = [text for kind in ("train", "render")
                 for text in (f"{median[kind]:,.0f}", f"{median[f'{kind}_bound']:,.0f}",
                              f"{ratio[kind]:.0%}")]
        print(table_row([model, precision, batch_size, *rates, f"{median['memory']:.2f}"]))


def hardware(device):
    """The GPU's name, or what matters of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return (f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, bf16 "
            f"multiplications in hardware: {'yes' if has_fast_bf16(device) else 'no'}")


if __name__ == "__main__":
    run_script(main)
