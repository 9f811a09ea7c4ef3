"""Base class of the loaders: a format's files to a `Scene` without its pixels."""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import torch

from loaders.folders import find_scene
from loaders.pixels import composite, read_pixels_of
from structures import Scene

SPLITS = ("train", "val", "test")

# Which split stands in for one that the files do not list.
FALLBACKS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}


class Loader(ABC):
    """One format: reads what a scene's files say, and leaves the pixels to `NeRFDataset`.

    A subclass names the `folders` inside `--data_dir` where its scenes lie and the `num_channels`
    of their images, and defines `load`, `write_demo` and, where not all three exist, `splits`.
    pixel_type: of stored pixels. reprojection_error: mean over the known points, in pixels of the
    full size; None if the files do not say.
    """

    folders = ()
    num_channels = 4
    pixel_type = torch.uint8
    reprojection_error = None

    def __init__(self, config):
        self.config = config
        self.root = find_scene(config, self.folders, self.write_demo)

    @abstractmethod
    def load(self, split):
        """The `Scene` of a split, its pixels None. Raises UserError for files that do not fit."""

    @abstractmethod
    def write_demo(self, folder):
        """Write the procedural scene into `folder` in this format."""

    def splits(self):
        """The splits that the files hold."""
        return SPLITS

    def existing_split(self, split):
        """`split`, or the one that stands in for it where the files do not hold it."""
        there = self.splits()
        return next((name for name in FALLBACKS[split] if name in there), split)

    def scenes(self):
        """All splits' scenes without the places of their files, as a checkpoint keeps them."""
        return {split: replace(self.load(split), files=(), mask_files=())
                for split in self.splits()}

    def split_name(self, split):
        """The split as part of a file name."""
        return split

    def read(self, files, sizes):
        """The stored pixels of images as bytes `[P, B]`, resized to `sizes [N, 2]`."""
        return read_pixels_of(files, sizes, self.num_channels)

    def to_rgb(self, pixels, background):
        """Stored pixels `[..., C]` as float RGB `[..., 3]` in [0, 1] on a background."""
        return composite(pixels, background)

    def points(self):
        """Known surface points `[M, 3]` in the cameras' world; M is 0 if the files have none."""
        return np.empty((0, 3))

    def ground_truth(self, scene, index):
        """Further ground truth of one image: a `dict` of float arrays `[h, w, C]` in [0, 1]."""
        return {}

    def make_scene(self, *, files, cameras, names, mask_files=(), **facts):
        """A `Scene` whose image sizes are those of its cameras."""
        ends = cameras.sizes.prod(dim=-1).cumsum(0)
        return Scene(
            pixels=None, offsets=torch.cat([torch.zeros_like(ends[:1]), ends]), cameras=cameras,
            names=tuple(names), files=tuple(map(str, files)), mask_files=tuple(mask_files),
            background=float(self.config.white_bkgd), **facts,
        )
