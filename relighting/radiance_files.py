"""Files of pictures under known lights: linear radiance, lights, environments, what is true.

Pictures are OpenEXR files, colour times alpha as is usual there, or PNGs of 16 bits with straight
alpha. Everything that a user's files can do wrong ends here in a UserError that names the file.
"""

from pathlib import Path

import cv2
import numpy as np
import torch

import image_utils
from relighting.lights import Lights, environment_lights, point_lights
from runtime.errors import UserError, first_line

# Finer environments are averaged: each texel is a light that is asked about at every point.
ENVIRONMENT_HEIGHT = 16

# Numbers beyond it are no lights of a scene, and products of theirs no numbers.
LARGEST = 1e15

# The released scenes do not tell how strong their lights are; these fit them (nerf_atlas).
INTENSITY_OF_ONE, INTENSITY_OF_SEVERAL = 100.0, 55.0

# What is known of the demo scene's pictures besides radiance, and the channels of each.
TRUTHS = {"albedo": 4, "roughness": 1, "normals": 3, "visibility": 1}


def radiance_file(folder, name):
    """The picture that a frame names, with its ending or without."""
    path = folder / name
    if path.suffix.lower() in (".exr", ".png"):
        return path
    png = path.with_name(f"{path.name}.png")
    return png if png.exists() else path.with_name(f"{path.name}.exr")


def radiance_size(path):
    """Width and height of a picture of radiance, from its header alone."""
    if path.suffix.lower() != ".exr":
        return image_utils.image_size(path)
    low, high = _opened(path, lambda file: file.header()["dataWindow"], header_only=True)
    return tuple(int(side) for side in np.asarray(high) - low + 1)


def read_radiance(path, num_channels):
    """Linear radiance, float32 `[h, w, num_channels]`; of 4, alpha is last and multiplied in."""
    wanted = {3: "RGB", 4: "RGBA (colour with an alpha channel)"}[num_channels]
    if path.suffix.lower() == ".exr":
        image = _read_exr(path, num_channels, wanted)
    else:
        image = _read_png(path, num_channels, wanted)
    image = image[..., :num_channels].astype(np.float32)
    if not np.isfinite(image).all() or image.min() < 0:
        raise UserError(f"{path} has radiance that is no finite number of at least 0; replace it.")
    return image


def _opened(path, read, header_only=False):
    """What `read` gives for an opened OpenEXR file."""
    import OpenEXR

    # The library writes of a missing or broken file to the terminal, and then raises no more.
    if not path.exists():
        raise UserError(f"{path} is missing, though the scene's files name it.")
    with open(path, "rb") as file:
        if file.read(4) != b"\x76\x2f\x31\x01":
            raise UserError(f"{path} is no OpenEXR file; replace it.")
    try:
        with OpenEXR.File(str(path), header_only=header_only) as file:
            return read(file)
    except Exception as error:
        raise UserError(f"{path} cannot be read as OpenEXR ({first_line(error)}); replace it."
                        ) from None


def _read_exr(path, num_channels, wanted):
    channels = _opened(
        path, lambda file: {name: each.pixels for name, each in file.channels().items()})
    for name in ("RGBA", "RGB"):
        if name in channels and len(name) >= num_channels:
            return channels[name]
    raise UserError(f"{path} has the channels {', '.join(channels)}; {wanted} is wanted, without a "
                    "layer's name.")


def _read_png(path, num_channels, wanted):
    image_utils.image_size(path)  # Says what is wrong with the file, where OpenCV does not.
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path} cannot be read as an image; replace it.")
    if image.dtype != np.uint16:
        raise UserError(f"{path} does not have 16 bits a channel, which linear radiance wants.")
    found = 1 if image.ndim == 2 else image.shape[-1]
    if found < num_channels:
        raise UserError(f"{path} has {found} channel(s); {wanted} is wanted.")
    values = image[..., [2, 1, 0, 3][: image.shape[-1]]] / np.float32(65535)
    colour, alpha = np.split(values, [3], axis=-1)
    return np.concatenate([colour * alpha, alpha], axis=-1) if alpha.size else colour


def read_radiance_of(files, sizes):
    """All pictures, made `sizes [N, 2]` big by area averages, as the bytes `[P, 8]` of half floats
    `[P, 4]`: radiance times alpha, alpha."""
    parts = []
    for file, size in zip(files, sizes.tolist(), strict=True):
        image = read_radiance(Path(file), 4)
        if list(image.shape[1::-1]) != size:
            image = cv2.resize(image, tuple(size), interpolation=cv2.INTER_AREA)
        parts.append(np.minimum(image, np.finfo(np.float16).max).astype(np.float16).reshape(-1, 4))
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)).view(np.uint8))


def read_ground_truth(file, size):
    """What is known of a picture at its own size: `dict` of float arrays `[h, w, C]` in [0, 1].

    `<name>_albedo.png` (linear, and its alpha as `coverage`), `_roughness`, `_normals` ((n + 1) /
    2) and `_visibility` (of the light) beside it.
    """
    file, truth = Path(file), {}
    for name, channels in TRUTHS.items():
        path = file.with_name(f"{file.stem}_{name}.png")
        if path.exists() and image_utils.image_size(path) == tuple(size):
            truth[name] = image_utils.read_image(path, channels).astype(np.float32) / 255
    if "albedo" in truth:
        truth["albedo"], truth["coverage"] = np.split(truth["albedo"], [3], axis=-1)
    return truth


def frames_lights(meta, path, intensity):
    """The `Lights [N, K]` of a file's frames; those with fewer than K have dark ones besides.

    intensity: what `light_weights` are multiplied by; None takes the file's `light_intensity`, and
    where it has none, what fits the released scenes.
    """
    environments, found = {}, []
    for frame in meta["frames"]:
        if "environment" in frame:
            found.append(_environment(frame, path, environments))
        elif "light_loc" in frame:
            found.append(_points(frame, path, intensity or meta.get("light_intensity")))
        else:
            raise UserError(f"{path} has a frame without light_loc or environment; "
                            "--dataset_name nerv wants to know the lights of each.")
    most = max(len(lights.places) for lights in found)
    padded = [lights.map(lambda x: torch.nn.functional.pad(x, (0, 0, 0, most - len(x))))
              for lights in found]
    return Lights(**{name: torch.stack([getattr(lights, name) for lights in padded])
                     for name in ("places", "colours", "distant")})


def _environment(frame, path, known):
    """The lights of a frame's environment; `known` keeps the maps that were read."""
    name = frame["environment"]
    file = path.parent / str(name)
    if not isinstance(name, str) or file.is_dir():
        raise UserError(f"{path} has environment = {name!r}; the name of a map is wanted.")
    if file not in known:
        known[file] = read_environment(file)
    turn = _numbers(frame.get("environment_turn", 0.0), path, "environment_turn", ())
    return environment_lights(known[file], float(turn))


def read_environment(path):
    """An equirectangular map `[H, W, 3]` of linear radiance, averaged to 16 rows if it has more."""
    image = read_radiance(path, 3)
    height, width = image.shape[:2]
    if height > ENVIRONMENT_HEIGHT:
        smaller = max(1, round(width * ENVIRONMENT_HEIGHT / height)), ENVIRONMENT_HEIGHT
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image)


def _points(frame, path, intensity):
    positions = _numbers(frame["light_loc"], path, "light_loc", (-1, 3))
    weights = _numbers(frame.get("light_weights", [[1.0, 1.0, 1.0]]), path, "light_weights", None)
    weights = np.atleast_2d(weights)[:, :3]
    if weights.shape != positions.shape or (weights < 0).any():
        raise UserError(f"{path} has light_weights of shape {weights.shape} for light_loc of shape "
                        f"{positions.shape}; a colour of at least 0 for each light is wanted.")
    if intensity is None:
        intensity = INTENSITY_OF_ONE if len(positions) == 1 else INTENSITY_OF_SEVERAL
    strength = _numbers(intensity, path, "light_intensity", ())
    if strength <= 0:
        raise UserError(f"{path} has light_intensity = {intensity!r}; a number above 0 is wanted.")
    lights = positions, strength * weights
    return point_lights(*(torch.as_tensor(x, dtype=torch.float32) for x in lights))


def _numbers(value, path, name, shape):
    """A value of a frame as a float64 array of a `shape`; any if None."""
    try:
        array = np.asarray(value, dtype=np.float64)
        array = array if shape is None else array.reshape(shape)
    except (ValueError, TypeError):
        array = np.full(1, np.nan)
    if not array.size or not (np.abs(array) < LARGEST).all():
        raise UserError(f"{path} has {name} = {value!r}; finite numbers are wanted"
                        f"{', three for each light' if shape == (-1, 3) else ''}.")
    return array
