"""NeRV's scenes: images of linear radiance under known lights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loaders.base import SPLITS, Loader
from loaders.bounds import cube
from loaders.checks import near_far
from loaders.lenses import lens_cameras
from loaders.pixels import Source
from loaders.transforms import blender_views, has_images, read_transforms
from relighting.lights import tone_map
from relighting.radiance_files import (
    radiance_file,
    radiance_size,
    read_all_radiance,
    read_frame_lights,
    read_ground_truth,
)
from structures import Scene


class LitBlender(Loader):
    """Blender's format with known lights and linear radiance instead of sRGB.

    Pixels are half floats: radiance times alpha, then alpha. Point lights of each frame are in
    `train_point/transforms_train.json` and `transforms_test.json`; environment maps in
    `train_env/` and `test_env/`.
    """

    folders = ("nerv", "nerv_public_release")
    marker = "train_point"
    pixel_type = torch.float16
    JSON_FOLDERS = {"point": ("train_point", "."), "env": ("train_env", "test_env")}

    def load(self, split: str) -> Scene:
        path = self._path_of(split)
        meta = read_transforms(path)
        views = blender_views(meta, path, self.config.factor, radiance_file, radiance_size)
        near, far = near_far(self.config)
        return self.make_scene(
            files=views.files, names=views.names,
            cameras=lens_cameras(views.camtoworlds, views.lenses, views.sizes, near, far),
            world_to_scene=torch.eye(4, dtype=torch.float64), box=cube(float(far - near) / 2),
            lights=read_frame_lights(meta, path, self.config.light_intensity),
        )

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS
                     if has_images(self._path_of(split), radiance_file))

    def write_demo(self, folder: Path) -> None:
        from procedural.lit_scene import write_nerv

        write_nerv(folder)

    def split_name(self, split: str) -> str:
        return split if self.config.lights == "point" else f"{split}_env"

    def read(self, sources: Sequence[Source]) -> Tensor:
        return read_all_radiance([source.file for source in sources],
                                 torch.tensor([source.size for source in sources]))

    def to_rgb(self, pixels: Tensor, background: float) -> Tensor:
        radiance, alpha = pixels.float().split([3, 1], dim=-1)
        return tone_map(radiance) + background * (1 - alpha)

    def ground_truth(self, scene: Scene, index: int) -> dict[str, np.ndarray]:
        return read_ground_truth(scene.files[index], scene.cameras.sizes[index].tolist())

    def _path_of(self, split):
        """The JSON file of a split under the config's kind of lights."""
        folder = self.JSON_FOLDERS[self.config.lights][split != "train"]
        return self.root / folder / f"transforms_{split}.json"
