"""COLMAP reconstructions."""

import struct

import numpy as np

import image_utils
import pose_utils
from loaders.captures import Capture, Views
from loaders.checks import checked_poses
from loaders.folders import every_nth, find_image, image_folder, report_left_out
from loaders.lenses import colmap_lens, stored_size
from procedural.scene import write_colmap
from runtime.errors import UserError, first_line


class Colmap(Capture):
    """`sparse/0/` (or `sparse/`) and `images[_factor]/`, as COLMAP leaves a reconstruction."""

    folders = ("colmap", "colmap_360")
    num_channels = 3

    def read_views(self):
        folder = image_folder(self.root, self.config.factor)
        path = self.root / "sparse"
        path = path / "0" if (path / "0").is_dir() else path
        model = read_model(path)
        registered = {im.name: im for im in model.images.values() if im.has_pose}
        files = {name: find_image(folder / name) for name in sorted(registered)}
        unknown = set(image_utils.list_images(folder)) - set(files.values())
        names = [name for name, file in files.items() if file is not None]
        report_left_out(folder, f"image(s) that {path} does not place",
                        sorted(file.name for file in unknown))
        report_left_out(path, f"view(s) without an image in {folder}",
                        [name for name, file in files.items() if file is None])
        if not names:
            raise UserError(f"{path} places none of the images in {folder}; check that the two "
                            "belong together.")
        lenses = [colmap_lens(registered[name].camera, path) for name in names]
        files = [files[name] for name in names]
        worldtocams = np.stack([registered[name].cam_from_world().matrix() for name in names])
        return Views(
            names=names, files=files, lenses=lenses, mask_files=[],
            camtoworlds=checked_poses(pose_utils.from_opencv(worldtocams), path, names),
            sizes=[stored_size(file, lens, path)
                   for file, lens in zip(files, lenses, strict=True)],
            points=checked_points(model, path), reprojection_error=reprojection_error(model),
        )

    def split_index(self, split):
        return every_nth(split, len(self.views.names), self.config.llffhold, self.root)

    def write_demo(self, folder):
        import_pycolmap()
        write_colmap(folder)


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
