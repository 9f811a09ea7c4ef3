"""Time of the released configurations on this machine: a Markdown table.

    python scripts/bench_presets.py

Each row is `train.py --preset paper` with the flags named there, on the demo scene of its format. A
few rays are timed as in the first line of a training; days are those of all steps.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import get_config  # noqa: E402
from planning.timing import measure_times  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_device_flag,
    environment_line,
    make_parser,
    table_head,
    table_row,
)
from train import compute_gradients, open_datasets, prepare  # noqa: E402

EIGHT_GPUS = ("--batch_size 65536 --max_steps 25000 --lr_init 1e-2 --lr_final 1e-3 "
              "--lr_delay_steps 2500")
CONFIGURATIONS = {
    "mip-NeRF, Blender": "--model mipnerf",
    "mip-NeRF, multiscale Blender": "--model mipnerf --dataset_name multicam",
    "mip-NeRF, LLFF": "--model mipnerf --dataset_name llff",
    "mip-NeRF 360": "--model mipnerf360 --dataset_name colmap",
    "mip-NeRF 360 with GLO": "--model mipnerf360 --dataset_name colmap --glo_features 4",
    "mip-NeRF 360, Blender 256": "--model mipnerf360",
    "mip-NeRF 360, Blender 512": "--model mipnerf360 --hidden 512 --basis icosahedron",
    "mip-NeRF 360, LLFF 256": "--model mipnerf360 --dataset_name llff",
    "mip-NeRF 360, LLFF 512":
        "--model mipnerf360 --dataset_name llff --hidden 512 --basis icosahedron",
    "Zip-NeRF": "--model zipnerf --dataset_name colmap",
    "Zip-NeRF, eight GPUs": f"--model zipnerf --dataset_name colmap {EIGHT_GPUS}",
    "Zip-NeRF, Blender": "--model zipnerf",
    "Zip-NeRF, multiscale": "--model zipnerf --dataset_name colmap --scales 1 2 4 8",
    "Zip-NeRF with GLO": "--model zipnerf --dataset_name colmap --glo_features 128",
}


def main(argv=None):
    parser = make_parser(__doc__)
    add_device_flag(parser)
    parser.add_argument("--data_dir", default="data", help="where demo scenes are written")
    args = parser.parse_args(argv)
    print(f"{environment_line()}, seed 0\n")
    print(table_head(["configuration", "flags", "batch", "steps", "parameters", "rays/s", "days"]))
    for name, flags in CONFIGURATIONS.items():
        print(measure(name, flags, args), flush=True)


def measure(name, flags, args):
    """The row of one configuration."""
    config = get_config(["--preset", "paper", *flags.split(), "--scene", "demo",
                         "--data_dir", args.data_dir, "--device", args.device,
                         "--eval_every", "0", "--no-final_eval"])
    device = select_device(config)
    with tempfile.TemporaryDirectory() as folder:
        training = prepare(config, device, Path(folder), open_datasets(config, device), None)
    per_step = measure_times(training, compute_gradients).per_step
    parameters = sum(p.numel() for p in training.model.parameters())
    days = per_step * config.max_steps / 86_400
    return table_row([name, f"`{flags}`", f"{config.batch_size:,}", f"{config.max_steps:,}",
                      f"{parameters / 1e6:.1f} M", f"{config.batch_size / per_step:,.0f}",
                      f"{days:,.1f}"])


if __name__ == "__main__":
    run_script(main)
