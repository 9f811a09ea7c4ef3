"""nerfstudio and instant-ngp captures: `transforms.json`."""

from functools import cached_property
from pathlib import Path

import numpy as np

import image_utils
from loaders.base import FALLBACKS
from loaders.captures import Capture, Views
from loaders.checks import checked_poses, read_json
from loaders.folders import every_nth, find_image, report_left_out
from loaders.lenses import stored_size, transforms_lens
from loaders.transforms import read_frames
from procedural.scene import write_nerfstudio
from runtime.errors import UserError


class Nerfstudio(Capture):
    """`transforms.json` and images, as nerfstudio and instant-ngp have them."""

    folders = ("nerfstudio",)

    @cached_property
    def num_channels(self):
        """4 where all images have alpha."""
        return 4 if all(map(image_utils.has_alpha, self.views.files)) else 3

    @property
    def path(self):
        return self.root / "transforms.json"

    @cached_property
    def meta(self):
        """The content of `transforms.json`, read once."""
        return read_json(self.path)

    def read_views(self):
        names, matrices = read_frames(self.meta, self.path)
        poses = checked_poses(matrices, self.path, names)
        files = [self._file(name) for name in names]
        report_left_out(self.path, "frame(s) without an image",
                        [name for name, (file, _) in zip(names, files, strict=True) if not file])
        order = [i for i in sorted(range(len(names)), key=names.__getitem__) if files[i][0]]
        if not order:
            raise UserError(f"{self.path} lists {len(names)} frames, and there is an image for "
                            f"none of them (the first would be {self.root / names[0]}).")
        lenses, sizes, masks = [], [], []
        for i in order:
            (file, reduction), frame = files[i], self.meta["frames"][i]
            lens = transforms_lens(self.meta | frame, file, self.config.factor // reduction,
                                   f"{self.path} ({names[i]})")
            width, height = stored_size(file, lens, self.path)
            if min(width, height) < reduction:
                raise UserError(f"{file} is {width}x{height}; --factor {self.config.factor} "
                                "leaves no pixel.")
            lenses.append(lens)
            sizes.append((width // reduction, height // reduction))
            masks.append(str(self.root / frame["mask_path"]) if "mask_path" in frame else None)
        return Views(
            names=[names[i] for i in order], files=[files[i][0] for i in order],
            camtoworlds=poses[order], lenses=lenses, sizes=sizes, points=np.empty((0, 3)),
            mask_files=masks if any(masks) else [],
        )

    def _file(self, name):
        """The image of a frame (None if there is none), and how much smaller it is to be made."""
        factor, (folder, *rest) = self.config.factor, Path(name).parts
        shipped = find_image(self.root.joinpath(f"{folder}_{factor}", *rest)) if rest else None
        return (shipped, 1) if shipped else (find_image(self.root / name), factor)

    def split_index(self, split):
        lists = listed_splits(self.meta, self.path)
        if not lists:
            return every_nth(split, len(self.views.names), self.config.llffhold, self.path)
        chosen = next((lists[name] for name in FALLBACKS[split] if lists.get(name)), None)
        others = set().union(*lists.values())
        index = [i for i, name in enumerate(self.views.names)
                 if (name not in others if chosen is None else name in chosen)]
        if not index:
            raise UserError(f"{self.path} leaves the {split} split without a view; correct its "
                            "train_filenames, val_filenames and test_filenames, or remove them.")
        return index

    def write_demo(self, folder):
        write_nerfstudio(folder)


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
