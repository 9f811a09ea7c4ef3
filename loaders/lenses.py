"""Intrinsics and lens distortion, from each format's parameters to `Lens` and `Cameras`."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import image_utils
from loaders.checks import view_angle
from loaders.folders import has_size, log_once
from runtime.errors import UserError
from runtime.numbers import SMALLEST, check_number, check_numbers
from runtime.reading import short
from structures import Cameras

# The supported lens models by their COLMAP names (nerfstudio uses the same), and their parameters
# in COLMAP's order.
LENSES = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
}

# The focal length of no lens, as a fraction of the image's side: a pinhole that sees 168 degrees.
SMALLEST_FOCAL = 0.05

# Other models by parts of their names, and what to do about them.
PANORAMA = ("cut each panorama into perspective images (ns-process-data images --camera-type "
            "equirectangular), and give those")
CURES = {
    ("EQUIRECTANGULAR", "LATLONG", "OMNIDIRECTIONAL", "VR180"): PANORAMA,
    ("ORTHO",): "give images of a perspective camera: parallel rays are not supported",
    ("ROLLING_SHUTTER",): ("remove the key rolling_shutter to read each image with its one "
                           "transform_matrix, or give images of a global shutter"),
}

# Keys of instant-ngp that mean other cameras than the one that the other keys describe.
OTHER_CAMERAS = {"latlong": "LATLONG", "equirectangular": "EQUIRECTANGULAR",
                 "orthographic": "ORTHOGRAPHIC", "ftheta_p0": "FTHETA",
                 "rolling_shutter": "ROLLING_SHUTTER"}

# Spellings of lens models in other programs.
ALIASES = {"PERSPECTIVE": "OPENCV", "FISHEYE": "OPENCV_FISHEYE"}

# Coefficients of lens models that are not supported; 0 means nothing.
OTHER_COEFFICIENTS = ("k5", "k6", "s1", "s2", "s3", "s4", "b1", "b2")


class Lens(NamedTuple):
    """A camera's intrinsics in pixels, for images of `size` (width, height).

    focal, centre: focal lengths and principal point, (x, y) each.
    distortion: k1, k2, k3, k4, p1, p2 as in `Cameras`.
    """

    size: tuple[float, float]
    focal: tuple[float, float]
    centre: tuple[float, float]
    distortion: tuple[float, ...]
    fisheye: bool

    def pixtocam(self, width: int, height: int) -> np.ndarray:
        """The pixel-to-camera matrix `[3, 3]` of the same image resized to width x height."""
        full_width, full_height = self.size
        return pixtocam(
            self.focal[0] * width / full_width, self.focal[1] * height / full_height,
            width, height, centre=(self.centre[0] / full_width, self.centre[1] / full_height),
        )


def make_lens(model: str, values: dict, size, source) -> Lens:
    """A `Lens` from the name of its COLMAP model and a `dict` of its parameters, in pixels.

    size: width and height; source: the file that describes the lens, for messages.
    Raises UserError naming `source` if the model is not supported or a parameter is invalid.
    """
    if not isinstance(model, str) or model not in LENSES:
        raise UserError(f"{source} has a camera with lens model {short(model).strip(chr(39))}; "
                        f"{cure_of(str(model))}.")
    focal = values.get("fx", values.get("f")), values.get("fy", values.get("f"))
    distortion = tuple(values.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    lens = Lens(tuple(size), focal, (values["cx"], values["cy"]), distortion,
                model.endswith("FISHEYE"))
    check_numbers(lens.size, (2,), source, "a camera of size", low=1)
    check_numbers(focal, (2,), source, "the focal lengths", low=SMALLEST)
    check_focal(focal, lens.size, source)
    check_numbers(lens.centre, (2,), source, "the principal point")
    check_numbers(distortion, (6,), source, "the distortion")
    return lens


def check_focal(focal, size, source) -> None:
    """Raise UserError for focal lengths that no lens has, such as fractions of the width."""
    if min(f / side for f, side in zip(focal, size, strict=True)) < SMALLEST_FOCAL:
        raise UserError(f"{source} has the focal lengths {focal[0]:.4g} and {focal[1]:.4g} for "
                        f"images of {size[0]:g}x{size[1]:g}; pixels are expected, so multiply "
                        "fractions by the width and height.")


def cure_of(model: str) -> str:
    """The cure for images of a lens model that is not supported, as part of a sentence."""
    cures = (cure for words, cure in CURES.items() if any(word in model for word in words))
    return next(cures, "undistort the images with COLMAP (image_undistorter), or fit one of "
                + ", ".join(LENSES))


def pixtocam(focal_x: float, focal_y: float, width: float, height: float,
             centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """The matrix `[3, 3]` from pixels (x, y, 1) to OpenGL camera directions with z = -1.

    focal_x, focal_y, width, height: in pixels.
    centre: the principal point as fractions of width and height.
    """
    return np.array([
        [1 / focal_x, 0, -centre[0] * width / focal_x],
        [0, -1 / focal_y, centre[1] * height / focal_y],
        [0, 0, -1],
    ])


def make_cameras(camtoworlds, pixtocams, sizes, **fields) -> Cameras:
    """`Cameras` in float32 from float64 arrays; `fields` are the other fields of `Cameras`."""
    return Cameras(
        camtoworlds=torch.as_tensor(np.asarray(camtoworlds), dtype=torch.float32),
        pixtocams=torch.as_tensor(np.asarray(pixtocams), dtype=torch.float32),
        sizes=torch.as_tensor(np.asarray(sizes), dtype=torch.int64),
        **fields,
    )


def lens_cameras(camtoworlds, lenses, sizes, near, far) -> Cameras:
    """The `Cameras` of N `Lens` at poses `[N, 3, 4]`; sizes: (width, height) of their images."""
    distortion = torch.tensor([lens.distortion for lens in lenses], dtype=torch.float32)
    fisheye = torch.tensor([lens.fisheye for lens in lenses])
    return make_cameras(
        camtoworlds,
        [lens.pixtocam(*size) for lens, size in zip(lenses, sizes, strict=True)],
        sizes, near=near, far=far,
        distortion=distortion if distortion.any() or fisheye.any() else None,
        fisheye=fisheye if fisheye.any() else None,
    )


def colmap_lens(camera, source: Path) -> Lens:
    """The `Lens` of a `pycolmap.Camera`."""
    names = LENSES.get(camera.model_name, "").split()
    values = dict(zip(names, map(float, camera.params), strict=False))
    return make_lens(camera.model_name, values, (camera.width, camera.height), source)


def transforms_lens(values: dict, file: Path, factor: int, source: str) -> Lens:
    """The `Lens` of a frame in nerfstudio's or instant-ngp's files.

    values: the frame's and the file's entries. If they have no size, it is `factor` times that of
    the image `file`. Raises UserError naming `source` if an entry is invalid.
    """
    model = lens_model(values, source)
    if "w" in values or "h" in values:
        size = _number(values, "w", source), _number(values, "h", source)
    else:
        size = tuple(factor * side for side in image_utils.image_size(file))
    lens = {
        "fx": _focal(values, "x", size[0], source),
        "cx": _number(values, "cx", source, 0.5 * size[0]),
        "cy": _number(values, "cy", source, 0.5 * size[1]),
    }
    has_fy = "fl_y" in values or ("camera_angle_y" in values and "fl_x" not in values)
    lens["fy"] = _focal(values, "y", size[1], source) if has_fy else lens["fx"]
    listed = check_numbers(values.get("distortion_params", [0.0] * 6), (6,), source,
                           "distortion_params")
    for name, default in zip(("k1", "k2", "k3", "k4", "p1", "p2"), listed, strict=True):
        lens[name] = _number(values, name, source, float(default))
    return make_lens(model, lens, size, source)


def lens_model(values: dict, source: str) -> str:
    """The COLMAP name of the lens model of a frame. Raises UserError for one that is not read."""
    for key, model in OTHER_CAMERAS.items():
        if values.get(key) and (key != "rolling_shutter" or any_number(values[key])):
            raise UserError(f"{source} has {key}; {cure_of(model)}.")
    for key in OTHER_COEFFICIENTS:
        if values.get(key):
            raise UserError(f"{source} has {key} = {short(values[key])}; {cure_of('')}.")
    # instant-ngp has only the two OpenCV models, distinguished by a flag.
    default = "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV"
    name = str(values.get("camera_model", default)).upper()
    return ALIASES.get(name, name)


def any_number(values) -> bool:
    """Whether a list, or a value, is not all zeros."""
    return any(values) if isinstance(values, list) else bool(values)


def _focal(values, axis, side, source):
    """The focal length in pixels along an axis, given in pixels or as an angle of view."""
    angle = values.get(f"camera_angle_{axis}")
    if f"fl_{axis}" in values:
        return _number(values, f"fl_{axis}", source)
    if angle is None:
        raise UserError(f"{source} has fl_{axis} = None and camera_angle_{axis} = None; one of "
                        "them is expected.")
    return 0.5 * side / math.tan(0.5 * view_angle(values, f"camera_angle_{axis}", source))


def _number(values, name, source, default=None):
    """A numeric entry as a float; raises UserError if it is missing or not a number."""
    return check_number(values.get(name, default), source, name)


def stored_size(file: Path, lens: Lens, source: Path) -> tuple[int, int]:
    """The (width, height) of an image file. Raises UserError unless its `Lens` has that shape."""
    size = image_utils.image_size(file)
    check_shape(file, size, lens, source)
    return size


def check_shape(file: Path, size: tuple[int, int], lens: Lens, source: Path) -> None:
    """Raise UserError unless an image file of `size` (width, height) has the shape of its `Lens`.

    Logs that EXIF's orientation is not applied: poses are usually those of the stored pixels.
    """
    is_turned = image_utils.is_turned(file)
    (width, height), (full_width, full_height) = size, lens.size
    if not has_size(np.array([height]), np.array([full_height * width / full_width])):
        cure = ("its EXIF orientation is not applied, so rotate its pixels" if is_turned else
                "use the images from which the cameras were estimated")
        raise UserError(f"{file} is {width}x{height}, which has another shape than the "
                        f"{full_width:g}x{full_height:g} of its camera in {source}; {cure}.")
    if is_turned:
        log_once(f"{source}: the EXIF orientation of images is not applied; if the cameras are "
                 "those of upright images, rotate the pixels.")
