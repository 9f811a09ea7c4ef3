"""Scores of a model over a whole split, by the papers' protocol.

    python evaluate.py --run log/blender_lego_mipnerf

The finest level, rendered deterministically, rounded to 8 bits as the truth is; PSNR and SSIM of
each image, then their mean. Writes `scores.json`, `scores.csv`, pictures and a contact sheet.
"""

import csv
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import coord
import image_utils
from checkpoint import load_checkpoint
from config import get_config, run_folder, run_script
from datasets import load_dataset
from file_utils import write_whole
from model import render_image, select_device

SHEET_ROWS = 8


def main(argv=None):
    flags = get_config(argv)
    run = load_checkpoint(run_folder(flags), flags.device)
    config = run.config
    for name in ("split", "chunk", "lpips", "save_images", "data_dir"):
        setattr(config, name, getattr(flags, name))
    dataset = load_dataset(config, config.split, select_device(config))
    folder = run.path.parent / f"eval_{config.split}_{run.step:08d}"
    scores = evaluate(run.model, dataset, config, run.step, folder)
    print(report(scores))
    print(f"written to {folder}")


def evaluate(model, dataset, config, step, folder):
    """Score every image of `dataset` and write all of it to `folder`; returns the scores.

    The result is a `dict` of means (psnr, ssim, lpips where asked, blank_psnr: that of a picture
    of the background alone), `scales` (the same by scale, for Multicam), and `images`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lpips = None if config.lpips == "none" else image_utils.make_lpips(config.lpips)
    was_training = model.training
    model.eval()
    images, rows = [], []
    for index in tqdm(range(len(dataset)), desc=f"scoring {dataset.split}", disable=None):
        pictures = render_pictures(model, dataset, index, config.chunk)
        images.append(score_image(pictures, dataset, index, lpips))
        if config.save_images:
            for name in ("rgb", "depth", "normals"):
                image_utils.write_image(folder / f"{index:03d}_{name}.png", pictures[name])
            rows.append(list(pictures.values()))
    model.train(was_training)
    scores = summarize(images) | origin(config, step, dataset)
    write_whole(folder / "scores.json", lambda f: f.write(json.dumps(scores, indent=1).encode()))
    write_whole(folder / "scores.csv", lambda f: f.write(as_csv(images).encode()))
    if rows:
        shown = np.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().astype(int)
        image_utils.write_image(
            folder / "sheet.png", image_utils.contact_sheet([rows[i] for i in shown])
        )
    return scores


def render_pictures(model, dataset, index, chunk):
    """Pictures of one view: `dict` of truth, rgb, depth, normals, float arrays `[h, w, 3]`."""
    batch = dataset.image(index)
    output = render_image(model, batch.rays, chunk, dataset.cameras)
    distance = world_distance(dataset.cameras, batch.rays, output.distance_median)
    near, far = image_utils.distance_range(distance, output.acc)
    return {
        "truth": image_utils.quantize(batch.rgb),
        "rgb": image_utils.quantize(output.rgb),
        "depth": image_utils.visualize_distance(distance, output.acc, near, far),
        "normals": image_utils.visualize_normals(output.extras["normals"], output.acc),
    }


def world_distance(cameras, rays, distance):
    """How far from the camera, in world units, the points at `distance [...]` in t are."""
    points = rays.origins + distance[..., None] * rays.directions
    if cameras.ndc is not None:
        points = coord.from_ndc(points, *cameras.ndc)
    positions = cameras.camtoworlds[rays.cam_idx[..., 0], :, 3]
    return (points - positions).norm(dim=-1)


def score_image(pictures, dataset, index, lpips=None):
    """The scores of one view, quantized as `render_pictures` gives it."""
    truth, rgb = pictures["truth"], pictures["rgb"]
    scores = {
        "name": dataset.scene.names[index],
        "psnr": image_utils.psnr(rgb, truth),
        "ssim": image_utils.ssim(rgb, truth),
        "blank_psnr": image_utils.psnr(np.full_like(truth, dataset.scene.background), truth),
    }
    if lpips is not None:
        scores["lpips"] = lpips(rgb, truth)
    if dataset.scene.labels is not None:
        scores["scale"] = int(dataset.scene.labels[index])
    return scores


def summarize(images):
    """Means over images, and by scale where there are scales."""
    scales = sorted({image["scale"] for image in images if "scale" in image})
    by_scale = {s: means([im for im in images if im["scale"] == s]) for s in scales}
    return means(images) | {"scales": by_scale, "images": images}


def means(images):
    """The mean of each score over `images`."""
    names = [name for name in ("psnr", "ssim", "lpips", "blank_psnr") if name in images[0]]
    return {name: float(np.mean([image[name] for image in images])) for name in names}


def origin(config, step, dataset):
    """Where scores come from: what anyone needs to get them again."""
    return {
        "split": dataset.split,
        "step": step,
        "commit": commit(),
        "device": str(dataset.device),
        "torch": torch.__version__,
        "config": vars(config),
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
    writer = csv.DictWriter(text, fieldnames=list(images[0]))
    writer.writeheader()
    writer.writerows(images)
    return text.getvalue()


def report(scores):
    """The scores as a small table."""
    def row(name, values):
        return f"{name:<8}" + "".join(
            f"{values[key]:>12.{3 if key.endswith('psnr') else 4}f}" for key in keys
        )

    keys = [key for key in ("psnr", "ssim", "lpips", "blank_psnr") if key in scores]
    lines = [f"{scores['split']:<8}" + "".join(f"{key:>12}" for key in keys)]
    lines += [row(f"1/{2**scale}", values) for scale, values in scores["scales"].items()]
    lines.append(row("mean", scores))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
