"""Convert Blender scenes to the multiscale scenes of mip-NeRF's official code, to the byte."""

import json
from pathlib import Path

import numpy as np

import image_utils
from loaders.base import SPLITS
from loaders.checks import view_angle
from loaders.folders import frame_file
from loaders.lenses import pixtocam
from loaders.transforms import read_frames, read_transforms
from runtime.errors import UserError
from runtime.files import new_folder

# The lists of each split in `metadata.json`, one entry per image, in their order there; and those
# that the Multicam loader reads.
WRITTEN_KEYS = ("file_path", "cam2world", "width", "height", "focal", "label", "near", "far",
                "lossmult", "pix2cam")
METADATA_KEYS = tuple(key for key in WRITTEN_KEYS if key != "focal")

# The ray range that the official conversion writes.
NEAR, FAR = 2.0, 6.0


def convert_to_multiscale(blender_dir: str | Path, out_dir: str | Path,
                          num_scales: int = 4) -> None:
    """Write a Blender scene at several scales, as the official conversion of mip-NeRF does.

    Metadata and pixels are the same. Each image is halved `num_scales` - 1 times by the mean of 2x2
    straight RGBA values in float32, and saved by truncation; level j has the loss weight 4^j.
    Splits that the source lacks are omitted. Raises UserError if a side is odd before the last
    level, or `out_dir` exists.
    """
    blender_dir, out_dir = Path(blender_dir), Path(out_dir)
    splits = [s for s in SPLITS if (blender_dir / f"transforms_{s}.json").exists()]
    if not splits:
        raise UserError(f"{blender_dir} has no transforms_*.json; a Blender scene is expected.")
    if out_dir.exists():
        raise UserError(f"{out_dir} exists already; remove it or choose another folder.")
    with new_folder(out_dir) as folder:
        meta = {s: _convert_split(blender_dir, folder, s, num_scales) for s in splits}
        (folder / "metadata.json").write_text(json.dumps(meta, indent=4))


def _convert_split(blender_dir, folder, split, num_scales):
    """Write the images of a split at all scales; returns its metadata, a `dict` of lists."""
    path = blender_dir / f"transforms_{split}.json"
    transforms = read_transforms(path)
    angle = view_angle(transforms, "camera_angle_x", path)
    meta = {key: [] for key in WRITTEN_KEYS}
    (folder / f"images_{split}").mkdir()
    for i, (source, matrix) in enumerate(zip(*read_frames(transforms, path), strict=True)):
        file = frame_file(blender_dir, source)
        image = image_utils.read_image(file, 4).astype(np.float32) / 255
        # The tangents of NumPy and of Python's math module may differ in the last bit.
        focal = float(0.5 * image.shape[1] / np.tan(0.5 * angle))
        for level in range(num_scales):
            name = f"images_{split}/{i:03d}_d{level}.png"
            image_utils.write_image(folder / name, np.uint8(image * 255))
            entries = _level_metadata(name, matrix, image.shape, focal / 2**level, level)
            for key, value in entries.items():
                meta[key].append(value)
            if level < num_scales - 1:
                image = _downsample_by_two(image, file, num_scales)
    return meta


def _level_metadata(name, matrix, shape, focal, level):
    """The metadata entries of one image at one level, with `focal` in its own pixels."""
    height, width = shape[:2]
    return {
        "file_path": name, "cam2world": np.array(matrix, np.float64).tolist(), "width": width,
        "height": height, "focal": focal, "label": level, "near": NEAR, "far": FAR,
        "lossmult": 4.0**level,
        "pix2cam": pixtocam(focal, focal, width, height).tolist(),
    }


def _downsample_by_two(image, file, num_scales):
    """The mean of 2x2 pixels. Raises UserError naming `file` if a side is odd."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        raise UserError(f"{file} is reduced to {width}x{height}, which cannot be halved for "
                        f"--num_scales {num_scales}; use fewer scales.")
    return image.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))
