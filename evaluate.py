"""Scores of a model over a whole split, by the papers' protocol.

    python evaluate.py --run log/blender_lego_mipnerf

The finest level, rendered deterministically, rounded to 8 bits as the truth is; PSNR and SSIM of
each image, then their mean. Writes `scores.json`, `scores.csv`, pictures and a contact sheet.
"""

import argparse
import csv
import io
import json
import subprocess
from pathlib import Path

from config import (
    READER_FLAGS,
    UserError,
    check_flags,
    run_script,
    saved_flags,
    shading_name,
)

if __name__ == "__main__":
    check_flags()

import numpy as np
import torch
from tqdm import tqdm

import distributed
import image_utils
from checkpoint import open_run
from datasets import load_dataset
from file_utils import write_whole
from lights import tone_map
from model import render_image, select_device
from ray_utils import world_points

SHEET_ROWS = 8


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
    known.check_is(run.scene)
    return dataset


def evaluation_folder(run_folder, dataset, step, shading=""):
    """Where the scores and pictures of a dataset's split at a step lie.

    shading: `config.shading_name` of pictures that are shaded otherwise than the run's own.
    """
    return Path(run_folder) / f"eval_{dataset.title}_{step:08d}{shading}"


def evaluate(model, dataset, config, step, folder):
    """Score every image of `dataset` and write scores and pictures to `folder`.

    Ranks share the images, and all of them get all scores.
    Returns a `dict` of means (psnr, ssim, lpips where asked, blank_psnr: that of a picture of the
    background alone), `scales` (the same by scale, for Multicam), `images`, and their origin.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lpips = image_utils.make_lpips(config.lpips)
    shown = np.linspace(0, len(dataset) - 1, min(SHEET_ROWS, len(dataset))).round()
    images, rows = [], []
    mine = distributed.my_share(range(len(dataset)))
    for index in tqdm(mine, desc=f"scoring {dataset.split}", disable=distributed.hide_bar()):
        pictures = render_pictures(model, dataset, index, config.chunk, config.save_images)
        images.append((index, score_image(pictures, dataset, index, lpips)))
        if config.save_images:
            for name in sorted(pictures.keys() - {"truth"}):
                image_utils.write_image(folder / f"{index:03d}_{name}.png", pictures[name])
            rows += [(index, list(pictures.values()))] if index in shown else []
    images = in_order(distributed.collect(images))
    rows = in_order(distributed.collect_on_main(rows))
    scores = summarize(images) | origin(model, config, step, dataset)
    if distributed.is_main():
        write_whole(folder / "scores.json",
                    lambda f: f.write(json.dumps(scores, indent=1).encode()))
        write_whole(folder / "scores.csv", lambda f: f.write(as_csv(images).encode()))
        if rows:
            image_utils.write_image(folder / "sheet.png", image_utils.contact_sheet(rows))
    return scores


def in_order(numbered):
    """The values of pairs (index, value) in the order of their indices."""
    return [value for _, value in sorted(numbered, key=lambda pair: pair[0])]


def render_pictures(model, dataset, index, chunk, with_geometry=True):
    """Pictures of one view: a `dict` of float arrays `[h, w, 3]`.

    Its keys are truth, rgb, `with_geometry` also depth and normals, and what `component_pictures`
    gives. `model` is in eval mode.
    """
    batch = dataset.image(index)
    output = render_image(model, batch.rays, chunk)
    pictures = {
        "truth": image_utils.quantize(batch.rgb), "rgb": image_utils.quantize(output.rgb)
    }
    if with_geometry:
        distance = world_distance(dataset.cameras, batch.rays, output.distance_median)
        near, far = image_utils.distance_range(distance, output.acc)
        pictures["depth"] = image_utils.visualize_distance(distance, output.acc, near, far)
        normals = image_utils.surface_normals(distance, batch.rays.viewdirs, output.acc)
        pictures["normals"] = image_utils.visualize_normals(normals, output.acc)
    return pictures | component_pictures(output)


def component_pictures(output):
    """What a relightable model tells of its surfaces: a `dict` of pictures `[h, w, 3]`.

    Albedo, roughness and visibility as they are, radiance tone-mapped, on white.
    """
    pictures, clear = {}, 1 - output.acc[..., None]
    for name, value in output.extras.items():
        if name == "normals":
            shown = 0.5 * (value + output.acc[..., None])
        else:
            shown = tone_map(value) if name in ("direct", "indirect") else value
        shown = (shown + clear).expand(*value.shape[:-1], 3)
        pictures["shading_normals" if name == "normals" else name] = shown.cpu().numpy()
    return pictures


def world_distance(cameras, rays, distance):
    """How far from the camera, in world units, the points at `distance [...]` in t are."""
    positions = cameras.camtoworlds[rays.cam_idx[..., 0], :, 3]
    return (world_points(cameras, rays, distance) - positions).norm(dim=-1)


def score_image(pictures, dataset, index, lpips=None):
    """The scores of one view, quantized as `render_pictures` gives it.

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
    return scores | score_components(pictures, dataset.truth(index))


def score_components(pictures, truth):
    """How far the components of one view are from what is true, where pixels are all surface.

    albedo_rmse: after the scale of each channel that fits best, since pictures tell albedo and the
    strength of lights only together; normals_degrees; visibility_mae, roughness_mae. Empty where a
    model has no components or nothing is known of the picture.
    """
    if "albedo" not in pictures or not truth:
        return {}
    solid = truth["coverage"][..., 0] == 1 if "coverage" in truth else ...
    if not np.size(pictures["albedo"][solid]):
        return {}
    found = {name: pictures["shading_normals" if name == "normals" else name][solid]
             for name in truth if name != "coverage"}
    scores = {}
    if "albedo" in found:
        albedo, true = found["albedo"], truth["albedo"][solid]
        albedo = albedo * (albedo * true).sum(0) / np.maximum((albedo**2).sum(0), 1e-9)
        scores["albedo_rmse"] = np.sqrt(np.mean((albedo - true) ** 2))
    if "normals" in found:
        scores["normals_degrees"] = angle(2 * found["normals"] - 1, 2 * truth["normals"][solid] - 1)
    for name in ("visibility", "roughness"):
        if name in found:
            scores[f"{name}_mae"] = np.abs(found[name][..., :1] - truth[name][solid]).mean()
    return {name: float(value) for name, value in scores.items()}


def angle(a, b):
    """The mean angle in degrees between vectors `[..., 3]`."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.maximum(length, 1e-9)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()


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


def commit():
    """The commit of this code, with '+' where files differ from it; 'unknown' outside git."""
    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
