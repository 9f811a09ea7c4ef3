"""nerfstudio and instant-ngp captures: `transforms.json`."""

import logging
from functools import cached_property
from pathlib import Path

import numpy as np

from loaders.base import FALLBACKS, SPLITS
from loaders.captures import Capture, Views
from loaders.checks import check_poses, read_ply_points
from loaders.folders import (
    check_different,
    every_nth,
    find_image,
    find_masks,
    has_size,
    located,
    log_left_out,
)
from loaders.lenses import stored_size, transforms_lens
from loaders.transforms import file_name, lens_entries, read_frames, read_transforms
from runtime.errors import UserError

logger = logging.getLogger(__name__)


class Nerfstudio(Capture):
    """A nerfstudio or instant-ngp capture: `transforms.json` and images."""

    folders = ("nerfstudio",)
    marker = "transforms.json"

    @property
    def path(self) -> Path:
        """The capture's JSON file."""
        return self.root / "transforms.json"

    @cached_property
    def meta(self) -> dict:
        """The content of `transforms.json`, read once."""
        return read_transforms(self.path)

    def read_views(self) -> Views:
        names, matrices = read_frames(self.meta, self.path)
        poses = check_poses(matrices, self.path, names)
        files = [self._image_file(name) for name in names]
        check_different([file for file, _ in files], names, self.path)
        log_left_out(self.path, "frame(s) without an image",
                     [name for name, (file, _) in zip(names, files, strict=True) if not file])
        order = [i for i in sorted(range(len(names)), key=names.__getitem__) if files[i][0]]
        if not order:
            raise UserError(f"{self.path} lists {len(names)} frames, none of which has an image "
                            f"(the first would be {self.root / names[0]}).")
        lenses, sizes = zip(*(self._lens_and_size(names[i], self.meta["frames"][i], *files[i])
                              for i in order), strict=True)
        masks = self._mask_files([self.meta["frames"][i] for i in order],
                                 [files[i][0] for i in order])
        return Views(
            names=[names[i] for i in order], files=[files[i][0] for i in order],
            camtoworlds=poses[order], lenses=list(lenses), sizes=list(sizes),
            points=self._read_points(), mask_files=masks,
        )

    def _read_points(self):
        """The points `[M, 3]` of the file's `ply_file_path`, in its coordinates; M may be 0."""
        if "ply_file_path" not in self.meta:
            return np.empty((0, 3))
        path = self.root / file_name(self.meta["ply_file_path"], self.path, "ply_file_path")
        if not path.is_file():
            logger.warning("%s is missing, which %s names as its points; range and box do "
                           "without it.", path, self.path)
            return np.empty((0, 3))
        return read_ply_points(path)

    def _image_file(self, name):
        """The image of a frame (None if missing) and the factor by which it is to be reduced."""
        factor, (folder, *rest) = self.config.factor, self._inside(name).parts
        shipped = find_image(self.root.joinpath(f"{folder}_{factor}", *rest)) if rest else None
        return (shipped, 1) if shipped else (find_image(located(self.root, name)), factor)

    def _inside(self, name):
        """The path of a named image relative to the scene's folder, if it is inside."""
        path = located(self.root, name)
        return path.relative_to(self.root) if path.is_relative_to(self.root) else Path(name)

    def _lens_and_size(self, name, frame, file, reduction):
        """The `Lens` of a frame, and the (width, height) of its image reduced by `reduction`."""
        factor = self.config.factor // reduction
        lens = transforms_lens(lens_entries(self.meta, frame), file, factor,
                               f"{self.path} ({name})")
        width, height = size = stored_size(file, lens, self.path)
        if "fl_x" in frame and not {"w", "h"} & set(frame) and not has_size(
                factor * np.array(size), np.array(lens.size)):
            raise UserError(f"{self.path} gives {name} its own fl_x and no w and h, and {file} is "
                            f"{width}x{height} instead of {lens.size[0]:g}x{lens.size[1]:g}; give "
                            "the w and h to which that fl_x belongs.")
        if min(width, height) < reduction:
            raise UserError(f"{file} is {width}x{height}; --factor {self.config.factor} "
                            "leaves no pixel.")
        return lens, (width // reduction, height // reduction)

    def _mask_files(self, frames, files):
        """The path of each frame's mask, or None, as for `null`; empty if no frame has a mask."""
        unnamed = [i for i, frame in enumerate(frames) if "mask_path" not in frame]
        # The first folder of file_path holds the images.
        inside = [self._inside(frames[i]["file_path"]).parts for i in unnamed]
        found = find_masks(self.root, [files[i] for i in unnamed],
                           ["/".join(parts[1:] or parts) for parts in inside])
        masks = dict(zip(unnamed, found, strict=False))
        for i, frame in enumerate(frames):
            if frame.get("mask_path") is not None:
                name = file_name(frame["mask_path"], self.path, "mask_path")
                masks[i] = str(located(self.root, name))
        return [masks.get(i) for i in range(len(frames))] if any(masks.values()) else []

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split == "train" or self._index_of(split))

    def split_index(self, split: str) -> list[int]:
        index = self._index_of(split)
        if not index:
            raise UserError(f"{self.path} leaves the {split} split without a view; correct its "
                            "train_filenames, val_filenames and test_filenames, or remove them.")
        return index

    def _index_of(self, split):
        """The indices of a split's views, none if it has no views."""
        lists, hold = listed_splits(self.meta, self.path), self.config.llffhold
        if not lists:
            if split != "train" and not hold:
                return []
            return every_nth(split, len(self.views.names), hold, self.path)
        alternatives = (name for name in FALLBACKS[split] if name == split or name != "train")
        chosen = next((lists[name] for name in alternatives if lists.get(name)), None)
        others = set().union(*lists.values())
        return [i for i, name in enumerate(self.views.names)
                if (name not in others if chosen is None else name in chosen)]

    def write_demo(self, folder: Path) -> None:
        from procedural.scene import write_nerfstudio

        write_nerfstudio(folder)


def listed_splits(meta: dict, path: Path) -> dict[str, set[str]]:
    """The image names that the file lists for each split; usually it lists none.

    Raises UserError if a list is invalid or names an image without a frame.
    """
    lists = {}
    for split in SPLITS:
        names = meta.get(f"{split}_filenames", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} has {split}_filenames that are not a list of file names.")
        if names:
            lists[split] = {file_name(name, path, "name") for name in names}
    known = set(read_frames(meta, path)[0])
    unknown = sorted(set().union(*lists.values()) - known)
    if unknown:
        raise UserError(f"{path} lists {unknown[0]} for a split, but has no frame with that "
                        "file_path; both must be spelled the same way.")
    return lists
