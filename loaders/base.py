"""Base class of the loaders: a format's files to a `Scene` without its pixels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loaders.folders import find_scene
from loaders.pixels import Source, composite, read_masks_of, read_pixels_of
from loaders.scales import cameras_at_scales, check_sizes, image_sources, scale_labels
from sparse.triangulation import Tracks
from structures import Cameras, Scene

SPLITS = ("train", "val", "test")

# The splits to try, in order, for each requested split. The only place with this rule.
# A scene without test views is scored on its training views, and the scores say so.
FALLBACKS = {"train": ("train",), "val": ("val", "test", "train"),
             "test": ("test", "val", "train")}


class Loader(ABC):
    """One format: reads the metadata of a scene's files and leaves the pixels to `NeRFDataset`.

    A subclass sets the class attributes below and defines `load`, `write_demo` and, if a scene
    may lack a split, `splits`.

    folders: folders inside `--data_dir` that are searched for a scene of this format.
    marker: a file or folder that identifies a scene folder of this format.
    pixel_type: dtype of the stored pixels.
    reprojection_error: mean over the known points, in pixels of the full size; None if unknown.
    """

    folders: tuple[str, ...] = ()
    marker: str = ""
    pixel_type: torch.dtype = torch.uint8
    reprojection_error: float | None = None

    def __init__(self, config):
        self.config = config
        self.root = find_scene(config, self.folders, self.write_demo)

    @property
    def num_channels(self) -> int:
        """Channels of the stored pixels."""
        return 4

    @abstractmethod
    def load(self, split: str) -> Scene:
        """The `Scene` of a split without its pixels. Raises UserError for inconsistent files."""

    @abstractmethod
    def write_demo(self, folder: Path) -> None:
        """Write the procedural demo scene into `folder` in this format."""

    def splits(self) -> tuple[str, ...]:
        """The splits that the files define."""
        return SPLITS

    def existing_split(self, split: str) -> str:
        """`split`, or its fallback (`FALLBACKS`) if the files do not define it."""
        existing = self.splits()
        return next((name for name in FALLBACKS[split] if name in existing), split)

    def scenes(self) -> dict[str, Scene]:
        """The scenes of all splits without file paths, as a checkpoint stores them."""
        return {split: replace(self.load(split), files=(), mask_files=())
                for split in self.splits()}

    def split_name(self, split: str) -> str:
        """The split as part of a file name."""
        return split

    def read(self, sources: Sequence[Source]) -> Tensor:
        """The stored pixels of images as uint8 `[P, B]`."""
        return read_pixels_of(sources, self.num_channels)

    def check_images(self, scene: Scene) -> None:
        """Read each image and mask of a scene once, and forget it.

        Raises UserError for the first that cannot be read, as a training would.
        """
        sizes, scales = scene.cameras.sizes, self.config.scales
        for source in image_sources(scene.files, sizes, scales)[: len(scene.files) // len(scales)]:
            self.read([source])
        for source in image_sources(scene.mask_files, sizes, scales) if scene.mask_files else ():
            read_masks_of([source])

    def to_rgb(self, pixels: Tensor, background: float) -> Tensor:
        """Stored pixels `[..., C]` as float RGB `[..., 3]` in [0, 1] on a background."""
        return composite(pixels, background)

    def points(self) -> np.ndarray:
        """Known surface points `[M, 3]` in the cameras' world; M is 0 if the files have none."""
        return np.empty((0, 3))

    def tracks(self, split: str) -> Tracks | None:
        """Which places of a split's images show the same points; None if the files do not say."""
        return None

    def ground_truth(self, scene: Scene, index: int) -> dict[str, np.ndarray]:
        """Further ground truth of one image: a `dict` of float arrays `[h, w, C]` in [0, 1]."""
        return {}

    def make_scene(self, *, files: Sequence, cameras: Cameras, names: Sequence[str],
                   mask_files: Sequence = (), **fields) -> Scene:
        """A `Scene` of these images at all `--scales`; `fields` are its other fields."""
        scales = self.config.scales
        check_sizes(files, cameras.sizes, scales)
        cameras = cameras_at_scales(cameras, scales)
        ends = cameras.sizes.prod(dim=-1).cumsum(0)
        return Scene(
            pixels=None, offsets=torch.cat([torch.zeros_like(ends[:1]), ends]), cameras=cameras,
            names=tuple(names) * len(scales), files=tuple(map(str, files)) * len(scales),
            mask_files=tuple(mask_files) * len(scales), background=sum(self.config.bg_range) / 2,
            **{"labels": scale_labels(len(names), scales)} | fields,
        )
