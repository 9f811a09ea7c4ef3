"""Scores of test views under test lights: a Markdown table from run folders.

    python scripts/bench_relighting.py log/nerv_demo_nerv log/nerv_demo_zipnerf
    python scripts/bench_relighting.py log/nerv_demo_nerv --baked 2000

Scores the whole test split under each set of lights, as `evaluate.py` does. If the ground truth is
known (demo scene) and the model predicts components, also gives the error of albedo after the best
scale per channel, the angle to the true normals, and the mean errors of visibility and roughness.
`--baked` adds a row for the geometry of a NeRV with hash grids, with colours that do not depend on
the lights.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int, shading_name  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import evaluate, open_split  # noqa: E402
from loss import LOSSES  # noqa: E402
from models.build import hash_field, head_config  # noqa: E402
from models.zipnerf import ZipNeRF  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.randomness import BatchRandom, step_seeds  # noqa: E402
from scheduler import make_optimizer, make_scheduler  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
    training_seconds,
)
from train import compute_gradients, default_micro_batch  # noqa: E402

# Errors of components, by their keys in `scores.json`, and their formats.
COMPONENTS = {"albedo_rmse": ".3f", "normals_degrees": ".1f", "visibility_mae": ".3f",
              "roughness_mae": ".3f"}

# The model's name in rows for a NeRV's geometry with baked colours.
BAKED = "its geometry, baked"


class BakedColours(ZipNeRF):
    """The geometry of a trained NeRV, with colours of position and view independent of lights."""

    def __init__(self, config, geometry):
        super().__init__(config)
        self.field, self.proposals = geometry.field, geometry.proposals
        self.requires_grad_(False)
        self.colours = hash_field(config, torch.float32, head_config(config), has_density=False)
        self.colours.box.copy_(geometry.box)

    def query_field(self, field, tdist, rays, rng, density_noise=None, with_rgb=True,
                    density_normals=False):
        """The geometry's density with the baked colours."""
        samples = super().query_field(field, tdist, rays, rng, density_noise, False,
                                      density_normals)
        if not with_rgb:
            return samples
        return samples._replace(rgb=super().query_field(self.colours, tdist, rays, rng).rgb)


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--lights", nargs="+", choices=["point", "env"], default=["point", "env"])
    parser.add_argument("--shade_at", choices=["samples", "surface"], help="as in evaluate.py")
    parser.add_argument("--march_shadows", action=argparse.BooleanOptionalAction,
                        help="as in evaluate.py")
    parser.add_argument("--baked", type=positive_int, metavar="STEPS",
                        help="train colours for the geometry of each nerv for this many steps")
    args = parser.parse_args(argv)
    print(f"{environment_line()}\n")
    print(table_head(["run", "trained under", "steps", "seconds", "seed", "tested under",
                      "shaded at", "PSNR dB", "SSIM", *COMPONENTS]))
    for folder in args.runs:
        run = load_checkpoint(folder, args.device)
        if run.config.dataset_name != "nerv":
            raise UserError(f"{folder} is a run on {run.config.dataset_name}, whose lights are not "
                            "known; give runs on --dataset_name nerv.")
        candidates = [(run.config.model, run.step, training_seconds(folder)(run.step), run.model)]
        if args.baked and run.config.model == "nerv":
            candidates.append(bake(run, args.baked))
        for candidate in candidates:
            for lights in args.lights:
                print(score(folder, run, candidate, lights, args), flush=True)


def bake(run, steps):
    """Train `BakedColours` for a run's geometry: name, steps, seconds, model."""
    if run.config.geometry != "zipnerf":
        raise UserError(f"--baked is for a nerv with hash grids, but {run.path} has MLPs; leave it "
                        "out.")
    weights = {f"{name}_loss_mult": float(name == "fine") for name in LOSSES}
    config = run.config.replace(**weights, max_steps=steps)
    device = select_device(config)
    micro_batch = config.micro_batch or default_micro_batch(config, device)
    dataset = load_dataset(config, "train", device)
    torch.manual_seed(config.seed)
    model = BakedColours(config, run.model).to(device).train()
    optimizer = make_optimizer(model, config)
    schedule = make_scheduler(optimizer, config)
    begin = time.perf_counter()
    for step in range(steps):
        pixels_seed, model_seed = step_seeds(config.seed, step)
        batch = dataset.batch(config.batch_size, torch.Generator().manual_seed(pixels_seed))
        rng = BatchRandom(model_seed, config.batch_size, device)
        _, micro_batch = compute_gradients(model, batch, config, step / steps, micro_batch, rng)
        optimizer.step()
        schedule.step()
    return BAKED, steps, time.perf_counter() - begin, model.eval()


def score(folder, run, candidate, lights, args):
    """The table's row of one model under one set of lights."""
    name, steps, seconds, model = candidate
    config = run.config.replace(save_images=False, lights=lights)
    shaded_at, suffix = "", "_baked" * (name == BAKED)
    if name == "nerv" and model.is_shading():
        config = config.replace(shade_at=args.shade_at or config.shade_at)
        if args.march_shadows is not None:
            config = config.replace(march_shadows=args.march_shadows)
        shaded_at = config.shade_at + ", marched" * config.march_shadows
        suffix = shading_name(config, run.saved_config)
    try:
        dataset = open_split(run, config, "test", select_device(config))
    except UserError as error:
        raise UserError(f"under --lights {lights}: {error}") from None
    out = folder / f"bench_{dataset.split_name}_{steps:08d}{suffix}"
    scores = evaluate(model, dataset, config, steps, out)
    errors = (format(scores[key], form) if key in scores else ""
              for key, form in COMPONENTS.items())
    return table_row([name, run.config.lights, steps, f"{seconds:.0f}", config.seed, lights,
                      shaded_at, f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}", *errors])


if __name__ == "__main__":
    run_script(main)
