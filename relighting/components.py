"""Images of NeRV's components, and their errors."""

from collections.abc import Mapping

import numpy as np

from relighting.lights import tone_map
from structures import RenderOutput

# Names of the components, as in `RenderOutput.extras`, in images and in file names.
COMPONENTS = ("albedo", "roughness", "shading_normals", "visibility", "direct", "indirect")


def component_images(output: RenderOutput) -> dict:
    """Images of NeRV's components: albedo, roughness, normals, visibility, direct, indirect light.

    A `dict` of arrays `[h, w, 3]`, on white. Direct and indirect light are tone-mapped; normals n
    are shown as (n + 1) / 2.
    """
    images, opacity = {}, output.acc[..., None]
    for name, value in output.extras.items():
        if name == "shading_normals":
            value = 0.5 * (value + opacity)
        elif name in ("direct", "indirect"):
            value = tone_map(value)
        image = (value + (1 - opacity)).expand(*value.shape[:-1], 3)
        images[name] = image.cpu().numpy()
    return images


def score_components(images: Mapping, ground_truth: Mapping) -> dict:
    """Errors of the predicted components against ground truth, over fully covered pixels.

    albedo_rmse: after scaling each channel to the best fit, since images determine the product of
    albedo and light only; normals_degrees; visibility_mae, roughness_mae. Empty if a model has no
    components or an image has no ground truth.
    """
    if "albedo" not in images or not ground_truth:
        return {}
    fully_covered = ground_truth["coverage"][..., 0] == 1 if "coverage" in ground_truth else ...
    if not np.size(images["albedo"][fully_covered]):
        return {}
    predicted = {name: images[name][fully_covered] for name in COMPONENTS if name in images}
    true = {name: ground_truth[name][fully_covered] for name in ground_truth}
    scores = {}
    if "albedo" in true:
        scores["albedo_rmse"] = albedo_error(predicted["albedo"], true["albedo"])
    if "normals" in true:
        scores["normals_degrees"] = mean_angle(
            2 * predicted["shading_normals"] - 1, 2 * true["normals"] - 1)
    for name in ("visibility", "roughness"):
        if name in true:
            scores[f"{name}_mae"] = np.abs(predicted[name][..., :1] - true[name]).mean()
    return {name: float(value) for name, value in scores.items()}


def albedo_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Root mean squared error of albedos `[P, 3]` after a least-squares scale per channel."""
    scaled = predicted * (predicted * true).sum(0) / np.maximum((predicted**2).sum(0), 1e-9)
    return np.sqrt(np.mean((scaled - true) ** 2))


def mean_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Mean angle in degrees between vectors `[..., 3]`."""
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.maximum(length, 1e-9)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()
