"""How fast points are encoded by a hash grid: the compiled kernels beside PyTorch's operations.

    python scripts/bench_hash_grid.py                       131,072 points, 8 levels of 2^16 entries
    python scripts/bench_hash_grid.py --points 32768 --finest 256 --log2_size 17

Both ways take turns in one process; the medians are printed. Points are drawn evenly, which is the
worst case: points along rays share cells.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from config import positive_int  # noqa: E402
from fields import hash_grid  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402

WAYS = {"kernels": hash_grid.encode, "PyTorch": hash_grid.encode_torch}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--points", type=positive_int, default=131_072)
    parser.add_argument("--coarsest", type=int, default=16, help="cells along a side")
    parser.add_argument("--finest", type=int, default=2048, help="cells along a side")
    parser.add_argument("--log2_size", type=int, default=16, help="entries of a level")
    parser.add_argument("--features", type=int, default=4, help="numbers per entry")
    parser.add_argument("--rounds", type=positive_int, default=7)
    args = parser.parse_args(argv)
    if not hash_grid.has_numba():
        raise UserError("numba cannot be imported here, so there are no kernels to compare; "
                        "pip install -r requirements.txt.")
    torch.manual_seed(0)
    levels = hash_grid.make_levels(args.coarsest, args.finest, args.log2_size)
    points = torch.rand(args.points, 1, 3)
    weights = torch.rand(args.points, 1, len(levels.num_entries))
    table = torch.randn(levels.table_size, args.features, requires_grad=True)
    seconds = {(name, part): [] for name in WAYS for part in ("forward", "both")}
    for turn in range(args.rounds + 1):
        for name, encode in WAYS.items():
            forward, both = time_once(encode, points, weights, table, levels)
            if turn:  # The first turn compiles, and pays for memory that later ones reuse.
                seconds[name, "forward"].append(forward)
                seconds[name, "both"].append(both)
    print(f"{len(levels.num_entries)} levels, {levels.table_size:,} entries of {args.features}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| way | forward, million points/s | forward and backward |\n| --- | --- | --- |")
    for name in WAYS:
        rates = [args.points / statistics.median(seconds[name, part]) / 1e6
                 for part in ("forward", "both")]
        print(f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} |")
    return 0


def time_once(encode, points, weights, table, levels):
    """Seconds of the forward pass, and of both."""
    begin = time.perf_counter()
    features = encode(points, weights, table, levels)
    forward = time.perf_counter() - begin
    torch.autograd.grad(features.sum(), table)
    return forward, time.perf_counter() - begin


if __name__ == "__main__":
    run_script(main)
