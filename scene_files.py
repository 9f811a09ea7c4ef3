"""What the formats of scenes share: where scenes lie, reading and checking their files, cameras.

Everything that a user's files can do wrong ends here in a UserError that names the file.
"""

import hashlib
import json
import math
import mmap
import os
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import image_utils
import pose_utils
from config import UserError, first_line
from file_utils import is_claimed, new_folder, remove_abandoned, writable_folder
from ray_utils import Cameras, corner_rays, points_to_pixels

DEMO = "demo"
PIXELS = "pixels.bin"

# Above this share of difference an image does not have the size or shape that a file states.
SIZE_TOLERANCE = 0.01

# The lens models that rays can be made for, by COLMAP's names (nerfstudio's are the same), and
# their parameters in COLMAP's order.
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

# What lies nearer or farther than all but this share of what the views see of the sparse points
# is taken for an error; the range is then widened by a tenth.
STRAY_PERCENT = 0.1
# As many points suffice to tell the range and the box.
MOST_POINTS = 20_000
# Without points: near and far as multiples of the cameras' distance to what they look at.
# In four captures, features lie between 0.43 and 6.6 of it.
NEAR_SHARE, FAR_SHARE = 0.2, 10.0


# Where scenes lie.


def find_scene(config, folders, make_demo):
    """The folder of `--scene`; the demo scene is made by `make_demo(folder)` on first use."""
    data_dir = Path(config.data_dir)
    if Path(config.scene).is_absolute():
        places = [Path(config.scene)]
    else:
        places = [data_dir / folder / config.scene for folder in folders]
        places.append(data_dir / config.scene)
    for place in places:
        if place.is_dir():
            return place
    if config.scene == DEMO:
        folder = writable_folder(data_dir / folders[0], folders[0]) / DEMO
        if not folder.is_dir():
            print(f"Making the demo scene in {folder} ...", flush=True)
            make_demo(folder)
        return folder
    looked = " or ".join(str(place) for place in places)
    raise UserError(
        f"the scene {config.scene!r} is not at {looked}; download it (scripts/download_*.sh) or "
        "set --data_dir and --scene (a name or a path)."
    )


# What the formats share.


def read_json(path):
    """A JSON object from a file of the scene."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check --scene and --dataset_name.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; a JSON object is wanted.")
    return value


def read_frames(meta, path):
    """The image names and camera-to-world matrices of a file's frames, as they are there."""
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} lists no frames; a split needs at least one.")
    try:
        return ([Path(frame["file_path"]).as_posix() for frame in frames],
                [frame["transform_matrix"] for frame in frames])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} has a frame without {error}; file_path and transform_matrix are wanted."
        ) from None


def png_file(folder, name):
    """The file of a Blender frame, which is named with or without its ending."""
    return folder / (name if name.lower().endswith(".png") else f"{name}.png")


def checked_poses(poses, path, names):
    """Poses as float64 `[N, 3, 4]`; raises UserError naming the first that is no rigid motion."""
    try:
        poses = np.asarray(poses, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        poses = np.empty(0)
    if poses.ndim != 3 or poses.shape[1] not in (3, 4) or poses.shape[2] != 4:
        raise UserError(f"{path} does not hold one 4x4 camera-to-world matrix per frame.")
    for name, pose in zip(names, poses, strict=True):
        fault = pose_utils.pose_fault(pose[:3])
        if fault:
            raise UserError(f"the pose of {name} in {path} {fault}; correct or remove this frame.")
    return poses[:, :3]


def checked_angle(meta, path):
    """The horizontal field of view of a Blender file, in radians."""
    value = meta.get("camera_angle_x")
    if type(value) in (int, float) and 0 < value < math.pi:
        return float(value)
    raise UserError(f"{path} has camera_angle_x = {value!r}; radians between 0 and pi are wanted.")


def pixtocam(focal_x, focal_y, width, height, centre=(0.5, 0.5)):
    """`[3, 3]` from pixels to OpenGL camera directions.

    centre: the principal point as shares of width and height.
    """
    return np.array([
        [1 / focal_x, 0, -centre[0] * width / focal_x],
        [0, -1 / focal_y, centre[1] * height / focal_y],
        [0, 0, -1],
    ])


def read_pixels_of(files, sizes, num_channels):
    """All images, made `sizes [N, 2]` big by area averages, as uint8 `[P, num_channels]`."""
    pixels = np.empty((int(sizes.prod(dim=-1).sum()), num_channels), dtype=np.uint8)
    first = 0
    for file, (width, height) in zip(files, sizes.tolist(), strict=True):
        image = image_utils.read_image(file, num_channels)
        small = image_utils.resize_area(image, width, height)
        pixels[first : first + width * height] = small.reshape(-1, num_channels)
        first += width * height
    return torch.from_numpy(pixels)


def read_masks_of(files, sizes):
    """All masks, in the images' `sizes [N, 2]`, as uint8 `[P]`; ones for a file that is None."""
    masks = [
        np.ones(width * height, dtype=np.uint8) if file is None
        else image_utils.read_mask(file, width, height).reshape(-1)
        for file, (width, height) in zip(files, sizes.tolist(), strict=True)
    ]
    return torch.from_numpy(np.concatenate(masks))


def mapped_bytes_of(root, files, sizes, num_channels, read):
    """What `read(files, sizes)` gives, uint8 `[P, num_channels]`, in a file and not in memory.

    What is touched is read from there, and memory for it is given back when others need it. The
    file is made once, in a hidden folder of the scene `root`, or of the user's cache where that
    cannot be written.
    """
    facts = repr((str(root.resolve()), [file and state_of(file) for file in files],
                  sizes.tolist(), num_channels))
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder = root / ".pixels" / digest
    if not folder.is_dir():
        folder = writable_folder(root / ".pixels", f"{root.name}_pixels") / digest
    count = int(sizes.prod(dim=-1).sum()) * num_channels
    if not folder.is_dir():
        print(f"Writing {count / 1e9:.1f} GB of pixels to {folder}, once ...", flush=True)
        remove_abandoned(folder, PIXELS)
        with new_folder(folder) as unfinished, open(unfinished / PIXELS, "wb") as out:
            is_claimed(out)
            for i in range(len(files)):
                out.write(read(files[i : i + 1], sizes[i : i + 1]).numpy())
            out.flush()
            os.fsync(out.fileno())
    found = (folder / PIXELS).stat().st_size
    if found != count:
        raise UserError(f"{folder / PIXELS} has {found:,} bytes and should have {count:,}; remove "
                        f"{folder}, and it is made again.")
    return map_bytes(folder / PIXELS).reshape(-1, num_channels)


def map_bytes(path):
    """The bytes of a file `[M]`, read when they are touched, and never to be written."""
    with open(path, "rb") as file:
        # Memory that might be written would be counted as if all of it were there.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8))


def state_of(file):
    """What changes when a file does: its name, size and time."""
    try:
        info = os.stat(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing, though the scene's files name it.") from None
    return str(file), info.st_size, info.st_mtime_ns


def make_cameras(camtoworlds, pixtocams, sizes, **facts):
    """`Cameras` in float32 from float64 arrays."""
    return Cameras(
        camtoworlds=torch.as_tensor(np.asarray(camtoworlds), dtype=torch.float32),
        pixtocams=torch.as_tensor(np.asarray(pixtocams), dtype=torch.float32),
        sizes=torch.as_tensor(np.asarray(sizes), dtype=torch.int64),
        **facts,
    )


def cube(half_width):
    """The corners `[2, 3]` of a cube about the origin."""
    return torch.tensor([[-half_width] * 3, [half_width] * 3])


def check_forward_facing(cameras, files):
    """Raise UserError for a camera with rays that do not go towards -z: NDC has none for them."""
    steepest = corner_rays(cameras).viewdirs[..., 2].amax(dim=-1)
    worst = int(steepest.argmax())
    if steepest[worst] >= 0:
        angle = math.degrees(math.acos(-float(steepest[worst])))
        raise UserError(
            f"{files[worst].name} sees {angle:.0f} degrees away from the mean direction of the "
            "cameras, and NDC ends at 90; use --spherify for an inward-facing capture, or --no-ndc."
        )


def ray_box(cameras):
    """The corners `[2, 3]` of the box around all rays between near and far."""
    rays = corner_rays(cameras)
    ends = torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])
    ends = ends.reshape(-1, 3)
    return torch.stack([ends.amin(dim=0), ends.amax(dim=0)])


def reached_box(scene):
    """The corners `[2, 3]` of the box around a `Scene` and all that its rays pass."""
    both = torch.stack([scene.box, ray_box(scene.cameras)])
    return torch.stack([both[:, 0].amin(dim=0), both[:, 1].amax(dim=0)])


def checked_range(near, far, lindisp):
    """near and far, numbers or one per camera, as float64.

    Raises UserError unless 0 <= near < far; for samples linear in disparity, 0 < near.
    """
    near, far = np.asarray(near, dtype=np.float64), np.asarray(far, dtype=np.float64)
    if lindisp and (near <= 0).any():
        raise UserError("--lindisp divides by near, which is 0 here; set --near or --no-lindisp.")
    if not ((near >= 0) & (near < far) & np.isfinite(far)).all():
        raise UserError(f"near {near.max():g} and far {far.min():g} do not make a range; set "
                        "--near and --far.")
    return near, far


def checked_array(values, shape, path, key):
    """A list of finite `shape`d numbers from a file, lossmult above 0, as float64 `[N, *shape]`."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0)
    if array.shape[1:] != shape or len(array) != len(values) or not np.isfinite(array).all():
        raise UserError(f"{path} has entries of {key} that are no finite numbers of shape {shape}.")
    if key == "lossmult" and (array <= 0).any():
        raise UserError(f"{path} has a lossmult that is not above 0.")
    return array


# Image folders and splits of captures.


def image_folder(root, factor):
    """The folder of images at `factor`: the shipped one, or one made from the next finer one.

    Raises UserError where the scene ships nothing as fine as `factor`.
    """
    name = "images" if factor == 1 else f"images_{factor}"
    if (root / name).is_dir():
        return root / name
    shipped = shipped_folders(root)
    finer = [f for f in shipped if f < factor]
    if not finer:
        there = ", ".join(str(f) for f in sorted(shipped)) or "no images folder at all"
        raise UserError(f"{root} has no images at --factor {factor} or finer; it ships: "
                        f"{there}. Set --factor to one of these or a coarser one.")
    source = max(finer)
    # Scenes of the same name must not share a folder in the cache.
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    target = writable_folder(root, f"{root.name}_{digest}") / name
    if not target.is_dir():
        _make_smaller(shipped[source], target, factor, factor / source)
    return target


def shipped_folders(root):
    """The folders of images that a scene ships: a `dict` from factors."""
    shipped = {1: root / "images"} if (root / "images").is_dir() else {}
    for folder in root.glob("images_*"):
        if folder.name[7:].isdigit() and folder.is_dir():
            shipped[int(folder.name[7:])] = folder
    return shipped


def _make_smaller(source, target, factor, ratio):
    files = image_utils.list_images(source)
    print(f"Making {len(files)} images at --factor {factor} in {target} ...")
    with new_folder(target) as folder:
        for file in files:
            image = image_utils.read_image(file, 3)
            height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
            small = image_utils.resize_area(image, width, height)
            made = folder / file.relative_to(source).with_suffix(".png")
            made.parent.mkdir(parents=True, exist_ok=True)
            image_utils.write_image(made, small)


def every_nth(split, count, hold, source):
    """Indices of a split of `count` views: every `hold`-th is a test view, and validates too."""
    held_out = [i for i in range(count) if i % hold == 0]
    index = sorted(set(range(count)) - set(held_out)) if split == "train" else held_out
    if not index:
        raise UserError(f"{source} has {count} image(s); with --llffhold {hold} the {split} split "
                        "is empty.")
    return index


def find_image(path):
    """The image file of that path, which may lack its ending or have another one; else None."""
    if path.suffix.lower() in image_utils.IMAGE_SUFFIXES:
        if path.is_file():
            return path
        path = path.with_suffix("")
    endings = sorted(image_utils.IMAGE_SUFFIXES)
    found = (Path(f"{path}{e}") for e in (*endings, *map(str.upper, endings)))
    return next((file for file in found if file.is_file()), None)


def report_left_out(source, reason, names):
    """One printed line about views of `source` that are not used."""
    if names:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        print(f"{source}: left out {len(names)} {reason}: {listed}", flush=True)


def fits(size, wanted):
    """Whether (width, height) are as wanted, but for rounding."""
    return bool((np.abs(size - wanted) <= np.maximum(1, SIZE_TOLERANCE * wanted)).all())


# Lenses and views of captures.


class Lens(NamedTuple):
    """A camera's intrinsics for pictures of `size` (width, height), in pixels.

    distortion: k1, k2, k3, k4, p1, p2 as in `Cameras`.
    """

    size: tuple
    focal: tuple
    centre: tuple
    distortion: tuple
    fisheye: bool

    def pixtocam(self, width, height):
        """`[3, 3]` for the same picture of another size."""
        full_width, full_height = self.size
        return pixtocam(
            self.focal[0] * width / full_width, self.focal[1] * height / full_height,
            width, height, centre=(self.centre[0] / full_width, self.centre[1] / full_height),
        )


class Views(NamedTuple):
    """What is known of N photographs, sorted by name, in the coordinates of their files.

    names; files: as used at `--factor`; camtoworlds: `[N, 3, 4]`, OpenGL axes; lenses: N `Lens`;
    sizes: (width, height) of the pictures to be made of the files; points: `[M, 3]` on surfaces,
    M may be 0; mask_files: N files or None each, empty if no view has a mask; reprojection_error:
    the points' mean, in pixels of the full size, None where the files do not tell.
    """

    names: list
    files: list
    camtoworlds: np.ndarray
    lenses: list
    sizes: list
    points: np.ndarray
    mask_files: list
    reprojection_error: float | None = None


def make_lens(model, values, size, source):
    """A `Lens` from the name of its model and a `dict` of its parameters.

    Raises UserError naming `source` for other models, and for numbers that make no lens.
    """
    if model not in LENSES:
        raise UserError(
            f"{source} has a camera of the model {model}; undistort the images with COLMAP "
            f"(image_undistorter), or fit one of {', '.join(LENSES)}."
        )
    focal = values.get("fx", values.get("f")), values.get("fy", values.get("f"))
    distortion = tuple(values.get(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    lens = Lens(tuple(size), focal, (values["cx"], values["cy"]), distortion,
                model.endswith("FISHEYE"))
    numbers = np.array([*lens.size, *focal, *lens.centre, *distortion], dtype=np.float64)
    if not np.isfinite(numbers).all() or (numbers[:4] <= 0).any():
        raise UserError(f"{source} has a camera with size {lens.size}, focal lengths {focal}, "
                        f"principal point {lens.centre} and distortion {distortion}; finite "
                        "numbers are wanted, sizes and focal lengths above 0.")
    return lens


def import_pycolmap():
    """The package `pycolmap`; raises UserError where it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise UserError("COLMAP models want the package pycolmap; install it with "
                        "`pip install -r requirements.txt`.") from None
    return pycolmap


def read_model(path):
    """The COLMAP model in a folder, as a `pycolmap.Reconstruction`.

    Raises UserError where the package is missing, or where the folder holds no whole model.
    """
    pycolmap = import_pycolmap()
    if (path / "points3D.bin").is_file():
        _check_points_file(path / "points3D.bin")
    try:
        return pycolmap.Reconstruction(str(path))
    except Exception as error:  # The library raises many kinds for damaged files.
        raise UserError(f"{path} holds no COLMAP model that can be read ({first_line(error)}); "
                        "cameras, images and points3D, .bin or .txt, are wanted.") from None


def _check_points_file(file):
    """Raise UserError unless the points' records end where the file does.

    COLMAP's own reader does not return from one that was cut off.
    """
    content = file.read_bytes()
    try:
        (count,), end = struct.unpack_from("<Q", content), 8
        for _ in range(count):
            # Identifier, position, colour and error, then the length of a track of pairs.
            end += 43
            end += 8 + 8 * struct.unpack_from("<Q", content, end)[0]
    except struct.error:
        end = None
    if end != len(content):
        raise UserError(f"{file} has {len(content)} bytes, which is not what its points take; copy "
                        "it again, or make the model again.")


def colmap_lens(camera, source):
    """The `Lens` of a camera of a COLMAP model."""
    names = LENSES.get(camera.model_name, "").split()
    values = dict(zip(names, map(float, camera.params), strict=False))
    return make_lens(camera.model_name, values, (camera.width, camera.height), source)


def checked_points(model, source):
    """The sparse points `[M, 3]` of a COLMAP model."""
    points = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise UserError(f"{source} has points that are not finite; make the model again.")
    return points


def reprojection_error(model):
    """The mean of the errors in pixels that a COLMAP model keeps with its points, None if none."""
    errors = [point.error for point in model.points3D.values() if point.error >= 0]
    return float(np.mean(errors)) if errors else None


def transforms_lens(values, file, times, source):
    """The `Lens` of a frame of nerfstudio's or instant-ngp's files.

    values: what the file says of it. Where that is no size, it is `times` that of the image `file`.
    """
    if "w" in values or "h" in values:
        size = _number(values, "w", source), _number(values, "h", source)
    else:
        size = tuple(times * side for side in image_utils.image_size(file))
    lens = {
        "fx": _focal(values, "x", size[0], source),
        "cx": _number(values, "cx", source, 0.5 * size[0]),
        "cy": _number(values, "cy", source, 0.5 * size[1]),
    }
    has_fy = "fl_y" in values or ("camera_angle_y" in values and "fl_x" not in values)
    lens["fy"] = _focal(values, "y", size[1], source) if has_fy else lens["fx"]
    for name in ("k1", "k2", "k3", "k4", "p1", "p2"):
        lens[name] = _number(values, name, source, 0.0)
    # instant-ngp knows the two OpenCV models and marks one by a switch.
    usual = "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV"
    return make_lens(values.get("camera_model", usual), lens, size, source)


def _focal(values, axis, side, source):
    """The focal length in pixels along an axis, given as such or as an angle of view."""
    angle = values.get(f"camera_angle_{axis}")
    if f"fl_{axis}" in values or angle is None:
        return _number(values, f"fl_{axis}", source)
    if type(angle) in (int, float) and 0 < angle < math.pi:
        return 0.5 * side / math.tan(0.5 * angle)
    raise UserError(f"{source} has camera_angle_{axis} = {angle!r}; radians between 0 and pi are "
                    "wanted.")


def _number(values, name, source, default=None):
    value = values.get(name, default)
    if type(value) in (int, float):
        return float(value)
    raise UserError(f"{source} has {name} = {value!r}; a number is wanted.")


def listed_splits(meta, path):
    """The image names that nerfstudio's file lists for splits: a `dict` of sets, often empty."""
    lists = {}
    for split in ("train", "val", "test"):
        names = meta.get(f"{split}_filenames", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} has {split}_filenames that are no list of file names.")
        if names:
            lists[split] = {Path(name).as_posix() for name in names}
    known = set(read_frames(meta, path)[0])
    strangers = sorted(set().union(*lists.values()) - known)
    if strangers:
        raise UserError(f"{path} lists {strangers[0]} for a split, but has no frame of that "
                        "file_path; the two must be written alike.")
    return lists


def stored_size(file, lens, source):
    """The size `(width, height)` of an image file, which must have the shape of its `Lens`."""
    width, height = image_utils.image_size(file)
    full_width, full_height = lens.size
    if not fits(np.array([height]), np.array([full_height * width / full_width])):
        raise UserError(f"{file} is {width}x{height}, which has another shape than the "
                        f"{full_width:g}x{full_height:g} of its camera in {source}; use the "
                        "images that the cameras were found for.")
    return width, height


def view_cameras(views, camtoworlds):
    """The `Cameras` of views whose poses were moved to `camtoworlds`, with t from 0 to 1."""
    lenses = views.lenses
    distortion = torch.tensor([lens.distortion for lens in lenses], dtype=torch.float32)
    fisheye = torch.tensor([lens.fisheye for lens in lenses])
    return make_cameras(
        camtoworlds,
        [lens.pixtocam(*size) for lens, size in zip(lenses, views.sizes, strict=True)],
        views.sizes, near=0.0, far=1.0,
        distortion=distortion if distortion.any() or fisheye.any() else None,
        fisheye=fisheye if fisheye.any() else None,
    )


def seen_range(cameras, points):
    """The range of t in which cameras see points `[M, 3]`, widened a little; None if none is seen.

    A tenth of a percent of what is seen is left out at each end.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    points = points[:: max(1, math.ceil(len(points) / MOST_POINTS))]
    seen = [_seen_distances(cameras, i, points) for i in range(len(cameras))]
    seen = np.concatenate([np.zeros(0), *seen])
    if not seen.size:
        return None
    near, far = np.percentile(seen, [STRAY_PERCENT, 100 - STRAY_PERCENT])
    return 0.9 * near, 1.1 * far


def _seen_distances(cameras, index, points):
    """The t of those `points` that lie in one camera's picture."""
    pixels, depth = points_to_pixels(cameras, torch.full((len(points),), index), points)
    inside = ((pixels >= 0) & (pixels <= cameras.sizes[index])).all(dim=-1)
    fisheye = cameras.fisheye is not None and bool(cameras.fisheye[index])
    t = (points - cameras.camtoworlds[index, :, 3]).norm(dim=-1) if fisheye else depth
    return t[inside & (t > 0)].numpy()


def cameras_range(camtoworlds):
    """A range of t where there are no points: shares of the distance to what cameras look at."""
    distance = _distance_to_focus(camtoworlds)
    return NEAR_SHARE * distance, FAR_SHARE * distance


def _distance_to_focus(camtoworlds):
    offset = camtoworlds[:, :, 3] - pose_utils.focus_point(camtoworlds)
    return float(np.median(np.linalg.norm(offset, axis=-1)))


def content_box(camtoworlds, points):
    """The corners `[2, 3]` of a box around the cameras and nearly all points `[M, 3]`.

    Without points it holds the cameras and what lies as near to their focus as they do.
    """
    if not len(points):
        focus, distance = pose_utils.focus_point(camtoworlds), _distance_to_focus(camtoworlds)
        points = np.stack([focus - distance, focus + distance])
    low, high = np.percentile(points, [1, 99], axis=0)
    margin = 0.1 * (high - low)
    positions = camtoworlds[:, :, 3]
    low = np.minimum(low - margin, positions.min(axis=0))
    high = np.maximum(high + margin, positions.max(axis=0))
    return torch.as_tensor(np.stack([low, high]), dtype=torch.float32)
