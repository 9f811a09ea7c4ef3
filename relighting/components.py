"""Images of NeRV's components, and their errors."""

import numpy as np

from relighting.lights import tone_map


def component_images(output):
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
