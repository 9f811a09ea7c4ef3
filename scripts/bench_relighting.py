"""Scores of held-out views under held-out lights: a Markdown table from run folders.

    python scripts/bench_relighting.py log/nerv_demo_nerv log/nerv_demo_zipnerf
    python scripts/bench_relighting.py log/nerv_demo_nerv --baked 2000

For each run and each set of lights the whole test split, as `evaluate.py` scores it. Where what is
true is known, as of the demo scene, and the model tells it: albedo's error after the best scale of
each channel, the angle to true normals, the mean errors of visibility and roughness. `--baked`
adds what the geometry of a NeRV of hash grids is worth with colours that know no light.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import nerv_geometry, positive_int, shading_name  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import evaluate, open_split  # noqa: E402
from loss import LOSSES  # noqa: E402
from models.build import hash_field, head_config  # noqa: E402
from models.zipnerf import ZipNeRF  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402
from runtime.randomness import BatchRandom, step_seeds  # noqa: E402
from scheduler import make_scheduler  # noqa: E402
from scripts.bench_training import read_seconds  # noqa: E402
from train import compute_gradients, default_micro_batch, make_optimizer  # noqa: E402

COMPONENTS = {"albedo_rmse": ".3f", "normals_degrees": ".1f", "visibility_mae": ".3f",
              "roughness_mae": ".3f"}


# What rows are called that tell of a NeRV's geometry with baked colours.
BAKED = "its geometry, baked"


class BakedColours(ZipNeRF):
    """The geometry of a trained NeRV, with colours of place and view that know no light."""

    def __init__(self, config, geometry):
        super().__init__(config)
        self.field, self.proposals = geometry.field, geometry.proposals
        self.requires_grad_(False)
        self.colours = hash_field(config, torch.float32, has_density=False, channels=3,
                                  **head_config(config))
        self.colours.box.copy_(geometry.box)

    def query_field(self, field, tdist, rays, rng, density_noise=None, with_rgb=True):
        found = super().query_field(field, tdist, rays, rng, density_noise, with_rgb=False)
        if not with_rgb:
            return found
        return found._replace(rgb=super().query_field(self.colours, tdist, rays, rng).rgb)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--lights", nargs="+", choices=["point", "env"], default=["point", "env"])
    parser.add_argument("--shade_at", choices=["samples", "surface"], help="as in evaluate.py")
    parser.add_argument("--march_shadows", action=argparse.BooleanOptionalAction,
                        help="as in evaluate.py")
    parser.add_argument("--baked", type=positive_int, metavar="STEPS",
                        help="learn colours for the geometry of each nerv in so many steps")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    args = parser.parse_args()
    print(f"commit {git_commit()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| run | trained under | steps | seconds | seed | tested under | shaded at | PSNR dB | "
          f"SSIM | {' | '.join(COMPONENTS)} |\n|{' --- |' * (9 + len(COMPONENTS))}")
    for folder in args.runs:
        run = load_checkpoint(folder, args.device)
        if run.config.dataset_name != "nerv":
            raise UserError(f"{folder} is a run on {run.config.dataset_name}, whose lights are not "
                            "known; give runs on --dataset_name nerv.")
        rivals = [(run.config.model, run.step, read_seconds(folder)(run.step), run.model)]
        if args.baked and run.config.model == "nerv":
            rivals.append(bake(run, args.baked))
        for rival in rivals:
            for lights in args.lights:
                print(score(folder, run, rival, lights, args), flush=True)


def bake(run, steps):
    """As the run's, the row's beginning and the model of its geometry with baked colours."""
    if nerv_geometry(run.config) != "zipnerf":
        raise UserError(f"--baked is for a nerv of hash grids, and {run.path} has networks; leave "
                        "it out.")
    weights = {f"{name}_loss_mult": float(name == "fine") for name in LOSSES}
    config = argparse.Namespace(**vars(run.config) | weights | {"max_steps": steps})
    device = select_device(config)
    config.micro_batch = config.micro_batch or default_micro_batch(config, device)
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
        compute_gradients(model, batch, config, step / steps, rng)
        optimizer.step()
        schedule.step()
    return BAKED, steps, time.perf_counter() - begin, model.eval()


def score(folder, run, rival, lights, args):
    """The table's line of one model under one set of lights."""
    name, steps, seconds, model = rival
    config = argparse.Namespace(**vars(run.config))
    config.save_images, config.lights = False, lights
    shaded_at, kind = "", "_baked" * (name == BAKED)
    if name == "nerv" and model.is_shading():
        config.shade_at = args.shade_at or config.shade_at
        if args.march_shadows is not None:
            config.march_shadows = args.march_shadows
        model.set_rendering(config)
        shaded_at = config.shade_at + ", marched" * config.march_shadows
        kind = shading_name(config, run.own)
    try:
        dataset = open_split(run, config, "test", select_device(config))
    except UserError as error:
        raise UserError(f"under --lights {lights}: {error}") from None
    out = folder / f"bench_{dataset.split_name}_{steps:08d}{kind}"
    scores = evaluate(model, dataset, config, steps, out)
    parts = (format(scores[name], form) if name in scores else ""
             for name, form in COMPONENTS.items())
    return (f"| {name} | {run.config.lights} | {steps} | {seconds:.0f} | {config.seed} | {lights} "
            f"| {shaded_at} | {scores['psnr']:.2f} | "
            f"{scores['ssim']:.3f} | {' | '.join(parts)} |")


if __name__ == "__main__":
    run_script(main)
