"""Register the project with nerfbaselines, or score a run by nerfbaselines' own evaluation.

    export NERFBASELINES_REGISTER=$PWD/scripts/nerfbaselines_method.py
    nerfbaselines train --backend python --method mipnerf-pytorch --data external://blender/lego
    python scripts/nerfbaselines_method.py --run log/blender_lego_zipnerf

nerfbaselines needs NumPy 1, so give it an environment of its own:

    python -m venv outside
    outside/bin/pip install nerfbaselines "numpy<2" torch==2.13.0 imageio scikit-image numba \
        pycolmap OpenEXR

The second use reads the run's dataset by nerfbaselines' loader, renders the test views at its
cameras, scores them by its metrics, and compares the scores with those of `evaluate.py`, which has
to be run first. LPIPS is left out, whose networks have to be downloaded.
"""

import argparse
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.errors import UserError, run_script  # noqa: E402

METHOD = "mipnerf-pytorch"

# Flags of train.py. By default the network is mip-NeRF's own, and Zip-NeRF's for what has no bound.
SPEC = {
    "id": METHOD,
    "method_class": "scripts.nerfbaselines_adapter:MipNeRF",
    "backends_order": ["python"],
    "metadata": {"name": "mip-NeRF (PyTorch)",
                 "description": "mip-NeRF, mip-NeRF 360 and Zip-NeRF in PyTorch"},
    "presets": {
        "blender": {"@apply": [{"dataset": "blender"}], "dataset_name": "blender"},
        "llff": {"@apply": [{"dataset": "llff"}], "dataset_name": "llff"},
        "unbounded": {"@apply": [{"dataset": name} for name in (
            "mipnerf360", "tanksandtemples", "zipnerf")],
            "dataset_name": "colmap", "model": "zipnerf"},
        **{name: {"preset": name} for name in ("paper", "gpu", "laptop", "debug")},
        **{name: {"model": name} for name in ("mipnerf", "mipnerf360", "zipnerf")},
    },
}

# nerfbaselines' loader of each format, and its arguments.
LOADERS = {
    "blender": ("blender", lambda config: {}),
    "llff": ("llff", lambda config: {"features": None}),
    "colmap": ("colmap", lambda config: {"images_path": f"images_{config.factor}"
                                         if config.factor > 1 else "images"}),
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="a run folder, already scored")
    parser.add_argument("--scene_dir", type=Path, help="the scene's folder (default: the run's)")
    args = parser.parse_args(argv)

    from scripts.nerfbaselines_adapter import MipNeRF

    method = MipNeRF(checkpoint=args.run)
    ours = our_scores(args.run, method.step)
    folder = args.scene_dir or scene_folder(method.config)
    cameras = method.get_method_info()["supported_camera_models"]
    theirs = their_scores(method, test_set(method.config, folder, cameras))
    print_comparison(ours, theirs)


def our_scores(folder, step):
    """The `scores.json` of a run's test views. Raises UserError if there is none."""
    path = folder / f"eval_test_{step:08d}" / "scores.json"
    if not path.exists():
        raise UserError(f"{path} does not exist; score the run by evaluate.py first.")
    return json.loads(path.read_text())


def scene_folder(config):
    """The folder of the scene of a run."""
    from datasets import DATASETS

    return DATASETS[config.dataset_name](config).root


def test_set(config, folder, cameras):
    """The test views of a scene as nerfbaselines loads them; cameras: models that are supported.

    Sizes come from the images: nerfbaselines assumes 800x800 for synthetic scenes.
    """
    from nerfbaselines.datasets import dataset_load_features

    if config.dataset_name not in LOADERS:
        raise UserError(f"the run's --dataset_name is {config.dataset_name}, for which "
                        f"nerfbaselines has no loader here; use one of {', '.join(LOADERS)}.")
    name, arguments = LOADERS[config.dataset_name]
    load = getattr(import_module(f"nerfbaselines.datasets.{name}"), f"load_{name}_dataset")
    dataset = load(str(folder), "test", **arguments(config))
    dataset["metadata"]["evaluation_protocol"] = "default"
    return dataset_load_features(dataset, supported_camera_models=cameras)


def their_scores(method, dataset):
    """The result of nerfbaselines' rendering and evaluation: means and scores of each view."""
    from nerfbaselines import evaluation, metrics

    skipped = {name: lambda a, b: 0 * metrics.mse(a, b) for name in ("lpips", "lpips_vgg")}
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(metrics, **skipped):
        predictions = os.path.join(folder, "predictions")
        for _ in evaluation.render_all_images(method, dataset, predictions):
            pass
        return evaluation.evaluate(predictions, os.path.join(folder, "results.json"))


def print_comparison(ours, theirs):
    """Print the mean PSNR and SSIM of both evaluations and their difference."""
    rows = {"evaluate.py": ours, "nerfbaselines": theirs["metrics"]}
    rows["difference"] = {key: rows["nerfbaselines"][key] - ours[key] for key in ("psnr", "ssim")}
    print(f"{len(ours['images'])} test views     PSNR dB      SSIM")
    for name, means in rows.items():
        print(f"{name:<14}{means['psnr']:>11.4f}{means['ssim']:>10.5f}")


if __name__ == "__main__":
    run_script(main)
else:
    from nerfbaselines import register

    register(SPEC)
