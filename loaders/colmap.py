"""COLMAP reconstructions."""

import struct
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import image_utils
import pose_utils
from loaders.captures import Capture, Views
from loaders.checks import check_poses
from loaders.folders import (
    check_different,
    every_nth,
    find_image,
    find_masks,
    image_folder,
    log_left_out,
)
from loaders.lenses import colmap_lens, stored_size
from runtime.errors import UserError, first_line
from runtime.numbers import LARGEST, check_numbers
from runtime.reading import check_file, read_bytes
from sparse.triangulation import Tracks


class Colmap(Capture):
    """A COLMAP reconstruction: `sparse/0/` (or `sparse/`) and `images[_factor]/`."""

    folders = ("colmap", "colmap_360")
    marker = "sparse"

    @property
    def model_path(self) -> Path:
        """The folder of the model."""
        path = self.root / "sparse"
        if not (path / "0").is_dir():
            return path
        log_left_out(path, "model(s) besides the one in 0", sorted(
            other.name for other in path.iterdir() if other.name.isdecimal() and int(other.name)))
        return path / "0"

    @cached_property
    def model(self):
        """The model, read once."""
        return read_model(self.model_path)

    def read_views(self) -> Views:
        folder = image_folder(self.root, self.config.factor)
        model, path = self.model, self.model_path
        registered = _by_name(model, path)
        files = _registered_files(registered, folder, path)
        lenses = [colmap_lens(registered[name].camera, path) for name in files]
        worldtocams = np.stack([_matrix(registered[name], path) for name in files])
        return Views(
            names=list(files), files=list(files.values()), lenses=lenses,
            mask_files=find_masks(self.root, list(files.values()), list(files)),
            camtoworlds=check_poses(pose_utils.from_opencv(worldtocams), path, list(files)),
            sizes=[stored_size(file, lens, path)
                   for file, lens in zip(files.values(), lenses, strict=True)],
            points=check_points(model, path), reprojection_error=reprojection_error(model),
        )

    def split_index(self, split: str) -> list[int]:
        return every_nth(split, len(self.views.names), self.config.llffhold, self.root)

    def tracks(self, split: str) -> Tracks | None:
        views, index = self.views, self.split_index(split)
        images = {image.name: image for image in self.model.images.values()}
        image_idx, pixels, point_idx = [], [], []
        for k, i in enumerate(index):
            seen = [place for place in images[views.names[i]].points2D if place.has_point3D()]
            ratio = np.divide(views.sizes[i], views.lenses[i].size)
            image_idx += [k] * len(seen)
            pixels += [place.xy * ratio for place in seen]
            point_idx += [place.point3D_id for place in seen]
        if not pixels:
            return None
        return Tracks(torch.tensor(image_idx), torch.from_numpy(np.array(pixels)).float(),
                      torch.tensor(point_idx))

    def write_demo(self, folder: Path) -> None:
        from procedural.scene import write_colmap

        import_pycolmap()
        write_colmap(folder)


def _matrix(image, path):
    """The world-to-camera matrix `[3, 4]` of a registered image."""
    pose = image.cam_from_world()
    # COLMAP would turn a quaternion of zeros into the identity.
    length = float(np.linalg.norm(pose.rotation.quat))
    if not (abs(length - 1) < 1e-3 and np.abs(pose.translation).max() <= LARGEST):
        raise UserError(f"the pose of {image.name} in {path} is no finite rotation and position; "
                        "correct or remove it.")
    return pose.matrix()


def _by_name(model, path):
    """The images of a model that have a pose, by name. Raises UserError for two of one name."""
    images = [image for image in model.images.values() if image.has_pose]
    by_name = {image.name: image for image in images}
    if len(by_name) < len(images):
        names = [image.name for image in images]
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} has two images named {double}; remove one.")
    return by_name


def _registered_files(registered, folder, path):
    """Names and files, as a `dict`, of a model's registered images that exist.

    Logs images without a pose and poses without an image. Raises UserError if no image is left.
    """
    files = {name: find_image(folder / name.replace("\\", "/")) for name in sorted(registered)}
    check_different(list(files.values()), list(files), path)
    unknown = set(image_utils.list_images(folder)) - set(files.values())
    log_left_out(folder, f"image(s) that {path} does not register",
                 sorted(file.name for file in unknown))
    log_left_out(path, f"view(s) without an image in {folder}",
                 [name for name, file in files.items() if file is None])
    files = {name: file for name, file in files.items() if file is not None}
    if not files:
        raise UserError(f"{path} registers none of the images in {folder}; check that the two "
                        "belong together.")
    return files


def import_pycolmap():
    """The module `pycolmap`. Raises UserError if it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise UserError("COLMAP models need the package pycolmap; install it with "
                        "`pip install -r requirements.txt`.") from None
    return pycolmap


def read_model(path: Path):
    """The COLMAP model in a folder, as a `pycolmap.Reconstruction`.

    Raises UserError if the package is missing or the folder holds no complete model.
    """
    pycolmap = import_pycolmap()
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.suffix in (".bin", ".txt"):
            check_file(file)
    if (path / "points3D.bin").exists():
        _check_points_file(path / "points3D.bin")
    try:
        model = pycolmap.Reconstruction(str(path))
        for identifier, name in _names_with_spaces(path, model).items():
            model.images[identifier].name = name
        return model
    except Exception as error:  # The library raises many types for damaged files.
        raise UserError(f"{path} holds no COLMAP model that can be read ({first_line(error)}); "
                        "cameras, images and points3D, .bin or .txt, are expected.") from None


def _names_with_spaces(path, model):
    """The names with spaces in a text model by image, which COLMAP's reader cuts at the space."""
    if (path / "images.bin").is_file() or not (path / "images.txt").is_file():
        return {}
    short_names = {str(identifier): image.name for identifier, image in model.images.items()}
    lines = (line.split(maxsplit=9) for line in (path / "images.txt").read_text().split("\n"))
    # Lines of features have as many words, but not the name of the image.
    return {int(words[0]): words[9].rstrip() for words in lines
            if len(words) == 10 and words[9].split()[0] == short_names.get(words[0])}


def _check_points_file(file):
    """Raise UserError unless the point records end where the file ends.

    COLMAP's own reader hangs on a truncated file.
    """
    content = read_bytes(file)
    try:
        (count,), end = struct.unpack_from("<Q", content), 8
        for _ in range(count):
            # Identifier, position, colour and error, then the length of a track of pairs.
            end += 43
            end += 8 + 8 * struct.unpack_from("<Q", content, end)[0]
    except (struct.error, OverflowError):
        end = None
    if end != len(content):
        raise UserError(f"{file} has {len(content)} bytes, which does not match its number of "
                        "points; copy it again, or rebuild the model.")


def check_points(model, source: Path) -> np.ndarray:
    """The sparse points `[M, 3]` of a COLMAP model. Raises UserError if one is not finite."""
    points = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    return check_numbers(points, (-1, 3), source, "points") if len(points) else points


def reprojection_error(model) -> float | None:
    """The mean reprojection error of a COLMAP model's points in pixels; None if it stores none."""
    errors = [point.error for point in model.points3D.values() if point.error >= 0]
    return float(np.mean(errors)) if errors else None
