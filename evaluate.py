"""Scores of a model over a whole split, by the protocol of the papers.

    python evaluate.py --run log/blender_lego_mipnerf

Images of the finest level are rendered deterministically and rounded to 8 bits like the ground
truth; PSNR and SSIM are computed per image and then averaged, also after the colours of each image
are fitted to its ground truth. Writes `scores.json`, `scores.csv`, images and a contact sheet.
"""

import csv
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from config import early_config, get_config, saved_flags, shading_name
from runtime.errors import UserError, first_line, run_script

if __name__ == "__main__":
    early_config("evaluate")

import numpy as np
import torch
from tqdm import tqdm

import image_utils
from cameras.alignment import TrainingCameras, with_refined_cameras
from checkpoint import Checkpoint, open_run
from datasets import NeRFDataset, load_dataset
from models.base import RayModel
from relighting.components import score_components
from rendering import render_view
from runtime import distributed
from runtime.devices import select_device
from runtime.files import write_atomically
from runtime.provenance import git_commit
from runtime.reading import check_file
from structures import Shading

# Backbones of LPIPS: torchvision's files of their weights, and the smallest image in pixels.
LPIPS_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
LPIPS_MIN_SIDE = {"vgg": 16, "alex": 31}

# Views on the contact sheet, evenly spaced over the split.
CONTACT_SHEET_ROWS = 8


def main(argv: Sequence[str] | None = None) -> None:
    run = open_run(get_config(argv, "evaluate"), also={"lights"})
    config, device = run.config, select_device(run.config)
    with distributed.joined_ranks(device):
        with distributed.first_on_each_machine():
            dataset = open_split(run, config, config.split, device)
        folder = evaluation_folder(
            run.path.parent, dataset, run.step, shading_name(config, run.saved_config))
        scores = evaluate(run.model, dataset, config, run.step, folder, training_cameras(run))
        print(format_table(scores))
        if dataset.split != config.split:
            print(f"The scene has no {config.split} views; these are scores of its "
                  f"{dataset.split} views.")
        print(f"{'Scores and images' if config.save_images else 'Scores'}: {folder}")


def open_split(run: Checkpoint, config: Any, split: str, device: torch.device) -> NeRFDataset:
    """A split of a run's scene with the flags of `config`; its images are read lazily.

    Raises UserError if the scene is not the run's, or has no such views under other lights
    (`--lights`). Those may be other views, so then the images under the run's own lights are
    compared.
    """
    dataset = known = load_dataset(config, split, device, read_pixels=False)
    if config.lights != run.saved_config.lights:
        if dataset.split != split:
            raise UserError(f"{dataset.loader.root} has no {split} views under --lights "
                            f"{config.lights}; leave the flag out, or add them.")
        config_of_run = config.replace(lights=run.saved_config.lights)
        known = load_dataset(config_of_run, split, device, read_pixels=False)
    known.check_same_scene(run.original_scene)
    return dataset


def training_cameras(run: Checkpoint) -> TrainingCameras | None:
    """The original and refined training cameras of a run; None if it refines none."""
    if run.refinement is None:
        return None
    return TrainingCameras(run.original_scene["train"].cameras, run.scene["train"].cameras)


def evaluation_folder(run_folder: str | Path, dataset: NeRFDataset, step: int,
                      shading: str = "") -> Path:
    """The folder for scores and images of a dataset's split after `step` training steps.

    shading: `config.shading_name`, the suffix for shading flags that differ from the run's.
    """
    return Path(run_folder) / f"eval_{dataset.split_name}_{step:08d}{shading}"


# Scores of a split.


def evaluate(model: RayModel, dataset: NeRFDataset, config: Any, step: int,
             folder: str | Path, refined: TrainingCameras | None = None) -> dict:
    """Score every view of `dataset`, and write scores and images to `folder`.

    refined: the training cameras of a run with --refine_cameras, to which test cameras are aligned.
    Views are divided among ranks; every rank returns all scores: a `dict` of the means (psnr, ssim,
    psnr_corrected and ssim_corrected with fitted colours, lpips if requested, and blank_psnr, the
    PSNR of an image of the background only), `scales` (the same by scale, for Multicam and
    `--scales`), `images` (the scores of each view), and the provenance.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if refined is not None:
        dataset = with_refined_cameras(model, dataset, config, refined)
    images, sheet = evaluate_views(model, dataset, config, folder)
    images = sort_by_index(distributed.collect(images))
    sheet = sort_by_index(distributed.collect_on_main(sheet))
    scores = summarize(images) | provenance(model, config, step, dataset)
    if refined is not None:
        is_train = dataset.split == "train"
        scores |= {"aligned_cameras": not is_train,
                   "camera_test_steps": 0 if is_train else config.camera_test_steps}
    if distributed.is_main():
        write_scores(folder, scores)
        if sheet:
            image_utils.write_image(folder / "sheet.png", image_utils.contact_sheet(sheet))
    return scores


def evaluate_views(model: RayModel, dataset: NeRFDataset, config: Any, folder: Path
                   ) -> tuple[list, list]:
    """Score this rank's views and write their images.

    Returns pairs (index, scores) of this rank's views, and pairs (index, images) of those on the
    contact sheet.
    """
    lpips = make_lpips(config.lpips, config.lpips_weights, dataset.device)
    count = len(dataset)
    sheet_views = np.linspace(0, count - 1, min(CONTACT_SHEET_ROWS, count)).round()
    rank_views = distributed.rank_items(range(count))
    scores, sheet = [], []
    for index in tqdm(rank_views, desc=f"scoring {dataset.split}", disable=distributed.hide_bar()):
        images = render_view(model, dataset, index, config.chunk, config.save_images,
                             Shading.from_config(config), config.normals_from)
        scores.append((index, score_image(images, dataset, index, lpips)))
        if config.save_images:
            for name in sorted(images.keys() - {"ground_truth"}):
                image_utils.write_image(folder / f"{index:03d}_{name}.png", images[name])
            if index in sheet_views:
                sheet.append((index, list(images.values())))
    return scores, sheet


def sort_by_index(pairs: list[tuple[int, Any]]) -> list:
    """The values of pairs (index, value), in the order of their indices."""
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


# Scores of one view.


def score_image(images: Mapping[str, np.ndarray], dataset: NeRFDataset, index: int,
                lpips: Callable | None = None) -> dict:
    """Scores of one view, whose `images` come from `render_view`, rounded to 8 bits.

    Masked pixels are excluded from PSNR and from the fit of colours, and replaced by ground truth
    for SSIM and LPIPS. Raises UserError if all pixels are masked.
    """
    ground_truth = images["ground_truth"]
    valid = valid_pixels(dataset, index, ground_truth.shape[:2])
    rgb = np.where(valid[..., None], images["rgb"], ground_truth)
    corrected = image_utils.correct_colours(rgb, ground_truth, valid)
    corrected = np.where(valid[..., None], image_utils.quantize(corrected), ground_truth)
    background_only = np.full_like(ground_truth, dataset.scene.background)
    scores = {
        "name": dataset.scene.names[index],
        "psnr": image_utils.psnr(rgb[valid], ground_truth[valid]),
        "ssim": image_utils.ssim(rgb, ground_truth),
        "psnr_corrected": image_utils.psnr(corrected[valid], ground_truth[valid]),
        "ssim_corrected": image_utils.ssim(corrected, ground_truth),
        "blank_psnr": image_utils.psnr(background_only[valid], ground_truth[valid]),
    }
    if lpips is not None:
        scores["lpips"] = lpips(rgb, ground_truth)
    if dataset.scene.labels is not None:
        scores["scale"] = int(dataset.scene.labels[index])
    return scores | score_components(images, dataset.ground_truth(index))


def valid_pixels(dataset: NeRFDataset, index: int, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of a view that its mask leaves, bool `[h, w]`; all of them without a mask."""
    mask = dataset.mask(index)
    if mask is None:
        return np.ones(shape, bool)
    valid = mask[..., 0].bool().cpu().numpy()
    if not valid.any():
        source = (dataset.scene.mask_files or dataset.scene.files)[index]
        raise UserError(f"the mask {source} leaves no pixel to score; correct it, or use this "
                        "view for training only.")
    return valid


# Tables of scores.


def summarize(images: list[dict]) -> dict:
    """Mean scores over all views, and for each scale under `scales` (empty without scales)."""
    scales = sorted({image["scale"] for image in images if "scale" in image})
    by_scale = {s: means([im for im in images if im["scale"] == s]) for s in scales}
    return means(images) | {"scales": by_scale, "images": images}


def means(images: list[dict]) -> dict[str, float]:
    """The mean of each score over the views that have it."""
    names = list(dict.fromkeys(name for image in images for name in image))
    return {name: float(np.mean([image[name] for image in images if name in image]))
            for name in names if name not in ("name", "scale")}


def provenance(model: RayModel, config: Any, step: int, dataset: NeRFDataset) -> dict:
    """Provenance: commit, device, precision, versions, config; with LPIPS, its network."""
    network = {} if config.lpips == "none" else {"lpips_network": config.lpips}
    return network | {
        "split": dataset.split,
        "step": step,
        "commit": git_commit(),
        "device": str(dataset.device),
        "precision": str(model.compute_dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "config": saved_flags(config),
    }


def write_scores(folder: Path, scores: dict) -> None:
    """Write `scores.json`, and `scores.csv` with one line per view."""
    text = json.dumps(scores, indent=1)
    write_atomically(folder / "scores.json", lambda file: file.write(text.encode()))
    csv_text = as_csv(scores["images"])
    write_atomically(folder / "scores.csv", lambda file: file.write(csv_text.encode()))


def as_csv(images: list[dict]) -> str:
    """A CSV table with one line per view."""
    text = io.StringIO()
    names = dict.fromkeys(name for image in images for name in image)
    writer = csv.DictWriter(text, fieldnames=list(names))
    writer.writeheader()
    writer.writerows(images)
    return text.getvalue()


def format_table(scores: dict) -> str:
    """The mean scores as a text table, with one row per scale if there are several."""
    keys = list(means(scores["images"]))
    widths = {key: max(12, len(key) + 2) for key in keys}

    def row(name: str, values: dict) -> str:
        return f"{name:<8}" + "".join(
            f"{values[key]:>{widths[key]}.{3 if 'psnr' in key else 4}f}" for key in keys)

    lines = [f"{scores['split']:<8}" + "".join(f"{key:>{widths[key]}}" for key in keys)]
    lines += [row(f"1/{2**scale}", values) for scale, values in scores["scales"].items()]
    lines.append(row("mean", scores))
    if scores.get("aligned_cameras"):
        lines.append("Test cameras were aligned to the refined training cameras; then each was "
                     f"refined on its own image for {scores['camera_test_steps']} steps.")
    return "\n".join(lines)


# LPIPS.


def make_lpips(net: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
               ) -> Callable[[image_utils.Image, image_utils.Image], float] | None:
    """A function of two images `[h, w, 3]` in [0, 1] that returns LPIPS (Zhang et al. 2018).

    net: the backbone, "vgg" or "alex"; for "none", None is returned. weights: the file of its
    weights from torchvision, which are downloaded if it is None. The package `lpips` brings the
    learned weights of channels (version 0.1). Raises UserError if the package or weights are not
    available, and for images that are too small for the backbone.
    """
    if net == "none":
        return None
    try:
        import lpips

        # Random numbers of an untrained backbone must not change those of a training.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The package uses an older interface of torchvision.
            metric = lpips.LPIPS(net=net, pnet_rand=weights is not None, verbose=False)
    except Exception as error:  # No package, an incompatible torchvision, no network.
        raise UserError(
            f"LPIPS ({net}) is not available: {first_line(error)}. It needs `pip install lpips`, "
            "the torchvision that fits this PyTorch, and weights from the network or from "
            "--lpips_weights FILE; or leave out --lpips.") from None
    if weights is not None:
        _load_backbone(metric.net, net, weights)
    metric.to(device)

    def distance(a: image_utils.Image, b: image_utils.Image) -> float:
        height, width = a.shape[:2]
        if min(height, width) < LPIPS_MIN_SIDE[net]:
            raise UserError(f"an image of {width} x {height} pixels is too small for --lpips "
                            f"{net}, which needs {LPIPS_MIN_SIDE[net]} pixels a side; leave it "
                            "out.")
        pair = [torch.as_tensor(x, dtype=torch.float32, device=device)
                .permute(2, 0, 1)[None] * 2 - 1 for x in (a, b)]
        with torch.no_grad():
            return float(metric(*pair))

    return distance


def _load_backbone(backbone: torch.nn.Module, net: str, path: str | Path) -> None:
    """Load torchvision's file of weights at `path` into the backbone `net` of LPIPS.

    Raises UserError if the file holds no weights of this network.
    """
    check_file(path, "correct --lpips_weights")
    # The package cuts torchvision's `features` into slices: slice2.5.weight is features.5.weight.
    names = {name: f"features.{name.split('.', 1)[1]}" for name in backbone.state_dict()}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        backbone.load_state_dict({name: content[key] for name, key in names.items()})
    except Exception:  # No file of PyTorch, another network, a whole module.
        raise UserError(f"{path} does not hold the weights of --lpips {net}; as --lpips_weights, "
                        f"torchvision's file {LPIPS_FILES[net]} is expected.") from None


if __name__ == "__main__":
    run_script(main)
