"""Scores of a model over a whole split, by the papers' protocol.

    python evaluate.py --run log/blender_lego_mipnerf

The finest level, rendered deterministically, rounded to 8 bits as the truth is; PSNR and SSIM of
each image, then their mean. Writes `scores.json`, `scores.csv`, pictures and a contact sheet.
"""

import argparse
import csv
import io
import json
from pathlib import Path

from config import READER_FLAGS, check_flags, saved_flags, shading_name
from runtime.errors import UserError, run_script

if __name__ == "__main__":
    check_flags()

import numpy as np
import torch
from tqdm import tqdm

import image_utils
from checkpoint import open_run
from datasets import load_dataset
from relighting.components import score_components
from rendering import render_view
from runtime import distributed
from runtime.devices import select_device
from runtime.files import write_whole
from runtime.provenance import commit

CONTACT_SHEET_ROWS = 8


def main(argv=None):
    run = open_run(argv, READER_FLAGS | {"lights"})
    config, device = run.config, select_device(run.config)
    with distributed.joined_ranks(device):
        with distributed.first_on_each_machine():
            dataset = open_split(run, config, config.split, device)
        folder = evaluation_folder(
            run.path.parent, dataset, run.step, shading_name(config, run.own))
        scores = evaluate(run.model, dataset, config, run.step, folder)
        print(report(scores))
        print(f"{'Scores and pictures' if config.save_images else 'Scores'}: {folder}")


def open_split(run, config, split, device):
    """A split of a run's scene, as `config` wants it, to be read one picture at a time.

    Raises UserError where the scene is not the run's. Pictures under other lights than the run's
    may be other views, so that then those under its own lights must be the run's.
    """
    dataset = known = load_dataset(config, split, device, read_pixels=False)
    if config.lights != run.own.lights:
        own = argparse.Namespace(**vars(config) | {"lights": run.own.lights})
        known = load_dataset(own, split, device, read_pixels=False)
    known.check_same_scene(run.scene)
    return dataset


def evaluation_folder(run_folder, dataset, step, shading=""):
    """Where the scores and pictures of a dataset's split at a step lie.

    shading: `config.shading_name` of pictures that are shaded otherwise than the run's own.
    """
    return Path(run_folder) / f"eval_{dataset.split_name}_{step:08d}{shading}"


def evaluate(model, dataset, config, step, folder):
    """Score every image of `dataset` and write scores and pictures to `folder`.

    Ranks share the images, and all of them get all scores.
    Returns a `dict` of means (psnr, ssim, lpips where asked, blank_psnr: that of a picture of the
    background alone), `scales` (the same by scale, for Multicam), `images`, and their origin.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lpips = image_utils.make_lpips(config.lpips)
    shown = np.linspace(0, len(dataset) - 1, min(CONTACT_SHEET_ROWS, len(dataset))).round()
    images, rows = [], []
    mine = distributed.my_share(range(len(dataset)))
    for index in tqdm(mine, desc=f"scoring {dataset.split}", disable=distributed.hide_bar()):
        pictures = render_view(model, dataset, index, config.chunk, config.save_images)
        images.append((index, score_image(pictures, dataset, index, lpips)))
        if config.save_images:
            for name in sorted(pictures.keys() - {"truth"}):
                image_utils.write_image(folder / f"{index:03d}_{name}.png", pictures[name])
            rows += [(index, list(pictures.values()))] if index in shown else []
    images = sort_by_index(distributed.collect(images))
    rows = sort_by_index(distributed.collect_on_main(rows))
    scores = summarize(images) | origin(model, config, step, dataset)
    if distributed.is_main():
        write_whole(folder / "scores.json",
                    lambda f: f.write(json.dumps(scores, indent=1).encode()))
        write_whole(folder / "scores.csv", lambda f: f.write(as_csv(images).encode()))
        if rows:
            image_utils.write_image(folder / "sheet.png", image_utils.contact_sheet(rows))
    return scores


def sort_by_index(numbered):
    """The values of pairs (index, value) in the order of their indices."""
    return [value for _, value in sorted(numbered, key=lambda pair: pair[0])]


def score_image(pictures, dataset, index, lpips=None):
    """The scores of one view, quantized as `render_view` gives it.

    Pixels that a mask leaves out do not count in PSNR, and as rendered without fault in the others.
    Raises UserError where it leaves out all.
    """
    truth, rgb = pictures["truth"], pictures["rgb"]
    mask = dataset.mask(index)
    counts = np.ones(truth.shape[:2], bool) if mask is None else mask[..., 0].bool().cpu().numpy()
    if not counts.any():
        raise UserError(f"the mask {dataset.scene.mask_files[index]} leaves no pixel to score; "
                        "correct it, or keep this view for training.")
    rgb = np.where(counts[..., None], rgb, truth)
    blank = np.full_like(truth, dataset.scene.background)
    scores = {
        "name": dataset.scene.names[index],
        "psnr": image_utils.psnr(rgb[counts], truth[counts]),
        "ssim": image_utils.ssim(rgb, truth),
        "blank_psnr": image_utils.psnr(blank[counts], truth[counts]),
    }
    if lpips is not None:
        scores["lpips"] = lpips(rgb, truth)
    if dataset.scene.labels is not None:
        scores["scale"] = int(dataset.scene.labels[index])
    return scores | score_components(pictures, dataset.ground_truth(index))


def summarize(images):
    """Means over images, and by scale where there are scales."""
    scales = sorted({image["scale"] for image in images if "scale" in image})
    by_scale = {s: means([im for im in images if im["scale"] == s]) for s in scales}
    return means(images) | {"scales": by_scale, "images": images}


def means(images):
    """The mean of each score over those of `images` that have it."""
    names = list(dict.fromkeys(name for image in images for name in image))
    return {name: float(np.mean([image[name] for image in images if name in image]))
            for name in names if name not in ("name", "scale")}


def origin(model, config, step, dataset):
    """Where scores come from: what anyone needs to get them again."""
    return {
        "split": dataset.split,
        "step": step,
        "commit": commit(),
        "device": str(dataset.device),
        "precision": str(model.compute_dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "config": saved_flags(config),
    }


def as_csv(images):
    """One line per image."""
    text = io.StringIO()
    names = dict.fromkeys(name for image in images for name in image)
    writer = csv.DictWriter(text, fieldnames=list(names))
    writer.writeheader()
    writer.writerows(images)
    return text.getvalue()


def report(scores):
    """The scores as a small table."""
    def row(name, values):
        return f"{name:<8}" + "".join(
            f"{values[key]:>{wide(key)}.{3 if key.endswith('psnr') else 4}f}" for key in keys
        )

    def wide(key):
        return max(12, len(key) + 2)

    keys = list(means(scores["images"]))
    lines = [f"{scores['split']:<8}" + "".join(f"{key:>{wide(key)}}" for key in keys)]
    lines += [row(f"1/{2**scale}", values) for scale, values in scores["scales"].items()]
    lines.append(row("mean", scores))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
