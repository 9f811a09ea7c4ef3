"""The sparse points of a scene: of the tracks in its files, or matched in its images."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from loaders.base import Loader
from loaders.bounds import bounding_box, observed_range
from loaders.captures import Capture
from loaders.pixels import file_state
from sparse.cache import MIN_POINTS, matched_points, summary
from sparse.triangulation import triangulate_tracks
from structures import Scene, SparsePoints

logger = logging.getLogger(__name__)


def points_of_scene(loader: Loader, scene: Scene, split: str) -> SparsePoints | None:
    """The points that a split's images show; None if there are none.

    scene: with pixels. Of an image at several scales only the first one counts.
    """
    finest = torch.arange(len(scene.names))
    if scene.labels is not None:
        finest = finest[scene.labels == 0]
    cameras = scene.cameras[finest]
    tracks = loader.tracks(split)
    points = None if tracks is None else triangulate_tracks(cameras, tracks)
    if points is None or len(points) < MIN_POINTS:
        points = matched_points(loader.root, cameras, image_states(scene, finest.tolist()),
                                lambda i: grey_image(loader, scene, int(finest[i])),
                                torch.get_num_threads())
    else:
        logger.info("The scene's files hold %s.", summary(points))
    if points is None:
        return None
    return replace(points, image_idx=finest[points.image_idx])


def with_bounds(loader: Loader, scene: Scene, points: SparsePoints | None) -> Scene:
    """The scene with the range and box of its points, if it is a capture whose files have none."""
    if points is None or not isinstance(loader, Capture) or len(loader.views.points):
        return scene
    all_cameras = loader.aligned[0]
    training = all_cameras[torch.as_tensor(loader.split_index("train"))]
    visible = tuple(float(t) for t in observed_range(training, points))
    box = bounding_box(all_cameras.camtoworlds.double().numpy(), points.positions.numpy())
    return replace(scene, box=box, cameras=replace(scene.cameras, visible_range=visible))


def image_states(scene: Scene, index: Sequence[int]) -> list:
    """The files and masks of some images, which determine their pixels, and their sizes."""
    files = [file_state(scene.files[i]) for i in index]
    masks = [file and file_state(file) for file in scene.mask_files]
    return [files, [masks[i] for i in index] if masks else [], scene.cameras.sizes[index].tolist()]


def grey_image(loader: Loader, scene: Scene, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """One image as uint8 `[h, w]`, and its mask, 0 where nothing is seen; None if all is."""
    width, height = scene.cameras.sizes[index].tolist()
    rows = slice(*scene.offsets[index : index + 2].tolist())
    pixels = scene.pixels[rows]
    grey = loader.to_rgb(pixels, scene.background).mean(dim=-1).clamp(0, 1)
    grey = (255 * grey).round().to(torch.uint8).reshape(height, width).numpy()
    seen = torch.ones(len(pixels), dtype=torch.bool)
    if scene.masks is not None:
        seen &= scene.masks[rows] > 0
    if pixels.shape[-1] == 4:
        seen &= pixels[:, 3] > 0
    return grey, None if seen.all() else seen.to(torch.uint8).reshape(height, width).numpy()
