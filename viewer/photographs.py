"""The photographs of a run, warped into the cameras of a viewer."""

import logging
from dataclasses import replace

import cv2
import numpy as np
import torch

import image_utils
from datasets import NeRFDataset, load_dataset
from ray_utils import image_rays, points_to_pixels
from runtime.errors import UserError
from viewer.loaded_run import LoadedRun, Shot

logger = logging.getLogger(__name__)


class Photographs:
    """The training images, if the dataset is where the run says."""

    def __init__(self, loaded: LoadedRun):
        self.missing = ""
        self.dataset: NeRFDataset | None = None
        try:
            dataset = load_dataset(loaded.run.config, "train", read_pixels=False)
            dataset.check_same_scene(loaded.run.original_scene)
            self.dataset = dataset
        except UserError as error:
            self.missing = str(error)
            logger.info("The photographs are not shown: %s", error)
        self.cached: tuple[int, np.ndarray] | None = None

    def image(self, index: int) -> np.ndarray:
        """A training image, uint8 `[h, w, 3]`."""
        if self.cached is None or self.cached[0] != index:
            self.cached = index, image_utils.to_uint8(self.dataset.image(index).rgb)
        return self.cached[1]

    def overlay(self, loaded: LoadedRun, image: np.ndarray, shot: Shot, index: int,
                fraction: float) -> np.ndarray:
        """An image of a shot whose left part shows a photograph, up to a fraction of the width."""
        height, width = image.shape[:2]
        edge = round(fraction * width)
        if not edge:
            return image
        warped, seen = self.warped(loaded, shot.at_size(width, height), index)
        result = image.copy()
        result[:, :edge] = np.where(seen[:, :edge, None], warped[:, :edge], image[:, :edge])
        result[:, max(0, edge - 1) : edge + 1] = 255
        return result

    def warped(self, loaded: LoadedRun, shot: Shot, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A photograph in a shot's camera, uint8 `[h, w, 3]`, and where it has pixels `[h, w]`.

        Right where the shot's camera stands at the photograph's; lens distortion is undone.
        """
        photograph = self.image(index)
        rays = image_rays(replace(loaded.video(shot).to("cpu").cameras, ndc=None), 0)
        cameras = loaded.scene.cameras.to("cpu")
        pixels, depth = points_to_pixels(cameras, torch.full(rays.shape, index),
                                         cameras.camtoworlds[index, :, 3] + rays.viewdirs)
        x, y = (pixels - 0.5).float().nan_to_num(nan=-1e4).numpy().transpose(2, 0, 1)
        seen = ((x > -0.5) & (y > -0.5) & (x < photograph.shape[1] - 0.5)
                & (y < photograph.shape[0] - 0.5) & (depth.numpy() > 0))
        warped = cv2.remap(photograph, np.ascontiguousarray(x), np.ascontiguousarray(y),
                           cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return warped, seen
