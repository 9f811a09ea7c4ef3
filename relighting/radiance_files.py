"""Files of images under known lights: linear radiance, lights, environments, ground truth.

Images are OpenEXR files with premultiplied alpha, as is usual there, or 16-bit PNGs with straight
alpha. Invalid files raise a UserError that names the file.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import image_utils
from relighting.lights import Lights, environment_lights, point_lights
from runtime.errors import UserError, first_line
from runtime.numbers import SMALLEST, check_number, check_numbers
from runtime.reading import check_file, short, text
from structures import stack

# Finer environments are averaged to this height: each texel is a light that is evaluated at every
# shaded point.
ENVIRONMENT_HEIGHT = 16

# The released scenes do not give the intensity of their lights; these values fit (nerf_atlas).
INTENSITY_OF_ONE, INTENSITY_OF_SEVERAL = 100.0, 55.0

# Ground-truth images of the demo scene besides radiance, and the number of channels of each.
GROUND_TRUTH_CHANNELS = {"albedo": 4, "roughness": 1, "normals": 3, "visibility": 1}


# Radiance.


def radiance_file(folder: Path, name: str) -> Path:
    """The image that a frame names, with or without its suffix."""
    path = folder / name
    if path.suffix.lower() in (".exr", ".png"):
        return path
    png = path.with_name(f"{path.name}.png")
    return png if png.exists() else path.with_name(f"{path.name}.exr")


def radiance_size(path: Path) -> tuple[int, int]:
    """Width and height of a radiance image; reads only its header."""
    if path.suffix.lower() != ".exr":
        return image_utils.image_size(path)
    low, high = _read_exr_file(path, lambda file: file.header()["dataWindow"], header_only=True)
    width, height = (int(side) for side in np.asarray(high).astype(np.int64) - low + 1)
    image_utils.check_size(path, width, height)
    return width, height


def read_radiance(path: Path, num_channels: int) -> np.ndarray:
    """Linear radiance, float32 `[h, w, num_channels]`; with 4, premultiplied by alpha, the last."""
    expected = {3: "RGB", 4: "RGBA (colour with an alpha channel)"}[num_channels]
    radiance_size(path)
    if path.suffix.lower() == ".exr":
        image = _read_exr(path, num_channels, expected)
    else:
        image = _read_png(path, num_channels, expected)
    image = image[..., :num_channels].astype(np.float32)
    if not np.isfinite(image).all() or image.min() < 0:
        raise UserError(f"{path} has radiance that is negative, infinite or NaN; replace it.")
    return image


def _read_exr_file(path, read, header_only=False):
    """The result of `read(file)` for an open OpenEXR file."""
    import OpenEXR

    # Check first: for missing and invalid files the library prints to the terminal instead of
    # raising.
    check_file(path)
    with open(path, "rb") as file:
        if file.read(4) != b"\x76\x2f\x31\x01":
            raise UserError(f"{path} is not an OpenEXR file; replace it.")
    try:
        with OpenEXR.File(str(path), header_only=header_only) as file:
            return read(file)
    except Exception as error:
        raise UserError(f"{path} cannot be read as OpenEXR ({first_line(error)}); replace it."
                        ) from None


def _read_exr(path, num_channels, expected):
    channels = _read_exr_file(
        path, lambda file: {name: each.pixels for name, each in file.channels().items()})
    for name in ("RGBA", "RGB"):
        if name in channels and len(name) >= num_channels:
            return channels[name]
    raise UserError(f"{path} has the channels {', '.join(channels)}; {expected} is expected, "
                    "without a layer's name.")


def _read_png(path, num_channels, expected):
    image_utils.verify(path)  # Its errors explain what is wrong with the file; OpenCV's do not.
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path} cannot be read as an image; replace it.")
    if image.dtype != np.uint16:
        raise UserError(f"{path} has {image.dtype} channels; 16 bits are expected for linear "
                        "radiance.")
    count = 1 if image.ndim == 2 else image.shape[-1]
    if count < num_channels:
        raise UserError(f"{path} has {count} channel(s); {expected} is expected.")
    values = image[..., [2, 1, 0, 3][: image.shape[-1]]] / np.float32(65535)
    colour, alpha = np.split(values, [3], axis=-1)
    return np.concatenate([colour * alpha, alpha], axis=-1) if alpha.size else colour


def read_all_radiance(files: Sequence, sizes: Tensor) -> Tensor:
    """All images, resized to `sizes [N, 2]` by area averages, as uint8 `[P, 8]`.

    These are the bytes of half floats `[P, 4]`: radiance times alpha, and alpha.
    """
    parts = []
    for file, size in zip(files, sizes.tolist(), strict=True):
        image = read_radiance(Path(file), 4)
        if list(image.shape[1::-1]) != size:
            image = cv2.resize(image, tuple(size), interpolation=cv2.INTER_AREA)
        parts.append(np.minimum(image, np.finfo(np.float16).max).astype(np.float16).reshape(-1, 4))
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)).view(np.uint8))


def read_ground_truth(file: str | Path, size: Sequence) -> dict:
    """Ground truth of an image, if it has the same size: float arrays `[h, w, C]` in [0, 1].

    From files next to it: `<name>_albedo.png` (linear; its alpha is `coverage`), `_roughness`,
    `_normals` ((n + 1) / 2) and `_visibility` (of the light).
    """
    file, ground_truth = Path(file), {}
    for name, channels in GROUND_TRUTH_CHANNELS.items():
        path = file.with_name(f"{file.stem}_{name}.png")
        if path.exists() and image_utils.image_size(path) == tuple(size):
            ground_truth[name] = image_utils.read_image(path, channels).astype(np.float32) / 255
    if "albedo" in ground_truth:
        albedo = ground_truth["albedo"]
        ground_truth["albedo"], ground_truth["coverage"] = np.split(albedo, [3], axis=-1)
    return ground_truth


# Lights.


def read_frame_lights(meta: dict, path: Path, intensity: float | None) -> Lights:
    """The `Lights [N, K]` of a file's frames; frames with fewer are padded with dark lights.

    intensity: factor of `light_weights`; None takes the file's `light_intensity`, or without one
    the value that fits the released scenes.
    """
    environments, frames = {}, []
    for frame in meta["frames"]:
        if "environment" in frame:
            frames.append(_environment(frame, path, environments))
        elif "light_loc" in frame:
            frames.append(_points(frame, path, intensity or meta.get("light_intensity")))
        else:
            raise UserError(f"{path} has a frame without light_loc or environment; "
                            "--dataset_name nerv needs the lights of each frame.")
    max_lights = max(len(lights.places) for lights in frames)
    return stack([lights.map(lambda x: torch.nn.functional.pad(x, (0, 0, 0, max_lights - len(x))))
                  for lights in frames])


def _environment(frame, path, cache):
    """The lights of a frame's environment; `cache` keeps the maps that were read."""
    name = frame["environment"]
    try:
        file = path.parent / text(name)
        if file.is_dir():
            raise ValueError
    except ValueError:
        raise UserError(f"{path} has environment = {short(name)}; the name of a map is expected."
                        ) from None
    if file not in cache:
        cache[file] = read_environment(file)
    turn = check_number(frame.get("environment_turn", 0.0), path, "environment_turn")
    return environment_lights(cache[file], turn)


def read_environment(path: Path) -> Tensor:
    """An equirectangular map `[H, W, 3]` of linear radiance, averaged to at most 16 rows."""
    image = read_radiance(path, 3)
    height, width = image.shape[:2]
    if height > ENVIRONMENT_HEIGHT:
        smaller = max(1, round(width * ENVIRONMENT_HEIGHT / height)), ENVIRONMENT_HEIGHT
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image)


def _points(frame, path, intensity):
    """The point lights of a frame."""
    positions = check_numbers(_in_threes(frame["light_loc"]), (-1, 3), path, "light_loc")
    weights = _in_threes(frame.get("light_weights", [1.0, 1.0, 1.0]))
    weights = check_numbers(weights, (-1, -1), path, "light_weights")[:, :3]
    if weights.shape != positions.shape or (weights < 0).any():
        raise UserError(f"{path} has light_weights of shape {weights.shape} for light_loc of shape "
                        f"{positions.shape}; a colour of at least 0 for each light is expected.")
    if intensity is None:
        intensity = INTENSITY_OF_ONE if len(positions) == 1 else INTENSITY_OF_SEVERAL
    strength = check_number(intensity, path, "light_intensity", low=SMALLEST)
    lights = positions, strength * weights
    return point_lights(*(torch.as_tensor(x, dtype=torch.float32) for x in lights))


def _in_threes(value):
    """A flat list of numbers as a list of lists of three; other values as they are."""
    is_flat = isinstance(value, list) and not any(isinstance(item, list) for item in value)
    return [value[i : i + 3] for i in range(0, len(value), 3)] if is_flat else value
