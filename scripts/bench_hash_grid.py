"""Measure the speed of hash-grid encodings: compiled kernels against PyTorch operations.

    python scripts/bench_hash_grid.py                       131,072 points, 8 levels of 2^16 entries
    python scripts/bench_hash_grid.py --points 32768 --finest 256 --log2_size 17

Both alternate in one process, and medians are printed. Points are uniformly random, which is the
worst case: neighbouring points on a ray fall into common cells.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from config import positive_int  # noqa: E402
from fields import hash_grid  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.benchmark import make_parser, table_head, table_row  # noqa: E402

IMPLEMENTATIONS = {"kernels": hash_grid.encode, "PyTorch": hash_grid.encode_torch}


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--points", type=positive_int, default=131_072)
    parser.add_argument("--coarsest", type=int, default=16, help="cells per side")
    parser.add_argument("--finest", type=int, default=2048, help="cells per side")
    parser.add_argument("--log2_size", type=int, default=16, help="log2 of the entries per level")
    parser.add_argument("--features", type=int, default=4, help="features per entry")
    parser.add_argument("--rounds", type=positive_int, default=7)
    args = parser.parse_args(argv)
    if not hash_grid.has_numba():
        raise UserError("numba cannot be imported here, so there are no kernels to compare; "
                        "pip install -r requirements.txt.")
    torch.manual_seed(0)
    levels = hash_grid.make_levels(args.coarsest, args.finest, args.log2_size)
    num_levels = len(levels.num_entries)
    print(f"{num_levels} levels, {levels.table_size:,} entries of {args.features}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(table_head(["implementation", "forward, million points/s", "forward and backward"]))
    for name, seconds in measure(levels, args).items():
        print(table_row([name, *(f"{args.points / s / 1e6:.2f}" for s in seconds)]))
    return 0


def measure(levels, args):
    """The median seconds of the forward pass, and of both passes, of each implementation."""
    points = torch.rand(args.points, 1, 3)
    weights = torch.rand(args.points, 1, len(levels.num_entries))
    table = torch.randn(levels.table_size, args.features, requires_grad=True)
    seconds = {name: [] for name in IMPLEMENTATIONS}
    for step in range(args.rounds + 1):
        for name, encode in IMPLEMENTATIONS.items():
            times = time_once(encode, points, weights, table, levels)
            if step:  # The first round compiles and allocates memory.
                seconds[name].append(times)
    return {name: [statistics.median(pass_times) for pass_times in zip(*times, strict=True)]
            for name, times in seconds.items()}


def time_once(encode, points, weights, table, levels):
    """Seconds of the forward pass, and of both passes."""
    begin = time.perf_counter()
    features = encode(points, weights, table, levels)
    forward = time.perf_counter() - begin
    torch.autograd.grad(features.sum(), table)
    return forward, time.perf_counter() - begin


if __name__ == "__main__":
    run_script(main)
