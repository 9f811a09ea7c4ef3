"""Random ray batches and whole images of a scene. Formats are in loaders/."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import image_utils
import pose_utils
from loaders.base import SPLITS, Loader
from loaders.bounds import cube
from loaders.checks import (
    check_forward_facing,
    checked_array,
    checked_poses,
    near_far,
    read_json,
)
from loaders.colmap import Colmap
from loaders.folders import every_nth, find_scene, fits, image_folder, png_file
from loaders.lenses import make_cameras, pixtocam
from loaders.lit import LitBlender
from loaders.nerfstudio import Nerfstudio
from loaders.pixels import memory_mapped, read_masks_of
from loaders.transforms import blender_views, checked_angle, read_frames
from procedural.scene import write_blender, write_llff
from ray_utils import image_rays, pixels_to_rays, ray_box
from runtime import distributed
from runtime.errors import UserError, first_line
from runtime.files import new_folder
from structures import Batch


def load_dataset(config, split, device="cpu", read_pixels=True):
    """The `NeRFDataset` of a config's scene at `split` ("train", "val", "test").

    Falls back to "test" if there is no "val" split; `dataset.split` is the one in use. Rays and
    colours arrive on `device`; pixels stay on the CPU. With `read_pixels=False` images are read
    lazily, and `batch` is unavailable. Raises UserError for files that do not fit.
    """
    return NeRFDataset(DATASETS[config.dataset_name](config), split, device, read_pixels)


class NeRFDataset:
    """Images with known cameras: random pixels for training, whole images for evaluation.

    loader: the scene's format (`loaders.base.Loader`).
    """

    def __init__(self, loader, split, device="cpu", read_pixels=True):
        self.loader, self.config, self.device = loader, loader.config, torch.device(device)
        self.split = loader.existing_split(split)
        self.scene = loader.load(self.split)
        if read_pixels:
            self.scene = self._with_pixels(self.scene)
        self.cameras = self.scene.cameras.to(self.device)
        self.lights = self.scene.lights and self.scene.lights.to(self.device)

    @property
    def split_name(self):
        """The split in use as part of a file name."""
        return self.loader.split_name(self.split)

    def scenes(self):
        """All splits' scenes without pixels: a `dict` of `Scene`."""
        return self.loader.scenes()

    def check_same_scene(self, scenes):
        """Raise UserError unless a run's `scenes` (a `dict` of `Scene`) are this very scene."""
        known, found = scenes.get(self.split), self.scene.cameras
        if known is None or len(known.cameras) != len(found) or any(
            not torch.allclose(getattr(known.cameras, name), getattr(found, name), atol=1e-5)
            for name in ("camtoworlds", "pixtocams")
        ):
            raise UserError(f"the {self.split} cameras in {self.loader.root} are not those of the "
                            "run; set --data_dir or --scene to where its scene lies now.")
        if known.lights and self.scene.lights and not known.lights.is_close(self.scene.lights):
            raise UserError(f"the {self.split} lights in {self.loader.root} are not those of the "
                            "run; set --data_dir or --scene to where its scene lies now, or "
                            "restore its files.")

    def __len__(self):
        return len(self.scene.names)

    def batch(self, batch_size, generator=None, rows=slice(None)):
        """Sample `batch_size` pixels with the CPU `generator`; a flat `Batch`.

        rows: a `slice` of that batch to return (a rank's).
        """
        index = self._sample_pixels(batch_size, generator)[rows]
        cam_idx = torch.searchsorted(self.scene.offsets, index, right=True) - 1
        within = index - self.scene.offsets[cam_idx]
        width = self.scene.cameras.sizes[cam_idx, 0]
        cam_idx, x, y, pixels, batch_index = map(self._on_device, (
            cam_idx, within % width, within // width, self.scene.pixels[index],
            torch.arange(batch_size)[rows]))
        masks, rays = self.scene.masks, pixels_to_rays(self.cameras, cam_idx, x, y)
        return Batch(
            rays=replace(rays, lights=self.lights and self.lights[cam_idx]),
            rgb=self.loader.to_rgb(pixels, self.scene.background),
            mask=None if masks is None else self._on_device(masks[index, None]).float(),
            batch_index=batch_index,
        )

    def image(self, index):
        """All pixels of one image, row by row: a `Batch` of shape `[h, w]`."""
        width, height = self.scene.cameras.sizes[index].tolist()
        pixels = self._on_device(self._pixels_of(index)).reshape(height, width, -1)
        rays = image_rays(self.cameras, index)
        rays = rays.with_lights(self.lights[index]) if self.lights else rays
        return Batch(rays=rays, rgb=self.loader.to_rgb(pixels, self.scene.background),
                     mask=self.mask(index))

    def mask(self, index):
        """The valid pixels of one image: `[h, w, 1]`, 1 or 0; None if all are."""
        if not self.scene.mask_files:
            return None
        width, height = self.scene.cameras.sizes[index].tolist()
        return self._on_device(self._mask_of(index)).reshape(height, width, 1).float()

    def ground_truth(self, index):
        """Further ground truth of one image: a `dict` of float arrays `[h, w, C]` in [0, 1]."""
        return self.loader.ground_truth(self.scene, index)

    def _sample_pixels(self, batch_size, generator):
        """Indices `[batch_size]` into all pixels, of all images or of one random image."""
        offsets = self.scene.offsets
        if self.config.batching == "all_images":
            return torch.randint(int(offsets[-1]), (batch_size,), generator=generator)
        image = torch.randint(len(self), (1,), generator=generator)
        first, last = int(offsets[image]), int(offsets[image + 1])
        return torch.randint(first, last, (batch_size,), generator=generator)

    def _with_pixels(self, scene):
        """The scene with the pixels and masks of its files."""
        loader, masks = self.loader, None
        pixels = self._read_or_map(scene.files, loader.num_channels * loader.pixel_type.itemsize,
                                   loader.read).view(loader.pixel_type)
        if scene.mask_files:
            masks = self._read_or_map(scene.mask_files, 1, read_masks_of)[:, 0]
        return replace(scene, pixels=pixels, masks=masks)

    def _read_or_map(self, files, num_bytes, read):
        """Bytes `[P, num_bytes]` of all pixels, memory-mapped above `--pixel_memory`."""
        sizes = self.scene.cameras.sizes
        budget = self.config.pixel_memory * 1e9 / distributed.ranks_of_machine()
        if int(sizes.prod(dim=-1).sum()) * num_bytes <= budget:
            return read(files, sizes).reshape(-1, num_bytes)
        return memory_mapped(self.loader.root, files, sizes, num_bytes, read)

    def _pixels_of(self, index):
        """The stored pixels `[h * w, C]` of one image, from memory or from its file."""
        if self.scene.pixels is not None:
            return self.scene.pixels[slice(*self.scene.offsets[index : index + 2].tolist())]
        pixels = self.loader.read(self.scene.files[index : index + 1],
                                  self.scene.cameras.sizes[index : index + 1])
        return pixels.view(self.loader.pixel_type)

    def _mask_of(self, index):
        """The mask `[h * w]` of one image, from memory or from its file."""
        if self.scene.masks is not None:
            return self.scene.masks[slice(*self.scene.offsets[index : index + 2].tolist())]
        return read_masks_of(self.scene.mask_files[index : index + 1],
                             self.scene.cameras.sizes[index : index + 1])

    def _on_device(self, tensor):
        """Copy without blocking, which CUDA does for pinned memory alone."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


class Blender(Loader):
    """`transforms_{train,val,test}.json` and RGBA PNGs: NeRF's synthetic scenes."""

    folders = ("nerf_synthetic",)

    def load(self, split):
        path = self._path_of(split)
        meta = read_json(path)
        views = blender_views(meta, path, self.config.factor, png_file, image_utils.image_size)
        near, far = near_far(self.config)
        return self.make_scene(
            files=views.files, names=views.names, cameras=views.cameras(near, far),
            world_to_scene=torch.eye(4), box=cube(float(far - near) / 2),
        )

    def splits(self):
        return tuple(split for split in SPLITS if self._path_of(split).exists())

    def write_demo(self, folder):
        write_blender(folder)

    def _path_of(self, split):
        return self.root / f"transforms_{split}.json"


class Multicam(Loader):
    """`metadata.json` and RGBA PNGs of several sizes, as mip-NeRF's multiscale scenes have them."""

    folders = ("nerf_multiscale",)
    KEYS = ("file_path", "cam2world", "pix2cam", "width", "height", "near", "far", "lossmult",
            "label")
    SHAPES = {"pix2cam": (3, 3), "width": (), "height": (), "near": (), "far": (),
               "lossmult": (), "label": ()}

    def load(self, split):
        path = self.root / "metadata.json"
        meta = self._split(read_json(path), split, path)
        names = [str(name) for name in meta["file_path"]]
        files = [self.root / name for name in names]
        sizes = np.stack([meta["width"], meta["height"]], axis=-1)
        for file, size in zip(files, sizes, strict=True):
            found = image_utils.image_size(file)
            if found != tuple(size):
                raise UserError(f"{file} is {found[0]}x{found[1]}, but {path} says "
                                f"{size[0]:g}x{size[1]:g}.")
        if self.config.factor != 1:
            raise UserError(f"--factor {self.config.factor} was given; a Multicam scene holds its "
                            "own scales, so only --factor 1 fits.")
        near, far = near_far(self.config, meta["near"], meta["far"])
        cameras = make_cameras(
            checked_poses(meta["cam2world"], path, names), meta["pix2cam"], sizes,
            near=near, far=far, lossmult=meta["lossmult"],
        )
        return self.make_scene(
            files=files, names=names,
            cameras=cameras, labels=torch.as_tensor(meta["label"]).long(),
            world_to_scene=torch.eye(4), box=cube(float(np.max(far - near)) / 2),
        )

    def splits(self):
        meta = read_json(self.root / "metadata.json")
        return tuple(split for split in SPLITS if split in meta)

    def write_demo(self, folder):
        blender = find_scene(self.config, Blender.folders, write_blender)
        # 100 pixels halve evenly only twice.
        convert_to_multiscale(blender, folder, num_scales=3)

    def _split(self, meta, split, path):
        if not isinstance(meta.get(split), dict):
            raise UserError(f"{path} has no split {split!r}; it holds {', '.join(meta) or 'none'}.")
        meta = meta[split]
        missing = [key for key in self.KEYS if not isinstance(meta.get(key), list)]
        if missing:
            raise UserError(f"the split {split!r} in {path} has no list {', '.join(missing)}.")
        counts = {key: len(meta[key]) for key in self.KEYS}
        if len(set(counts.values())) != 1 or not meta["file_path"]:
            raise UserError(f"the lists of {split!r} in {path} have {counts} entries; equal counts "
                            "of at least 1 are wanted.")
        for key, shape in self.SHAPES.items():
            meta[key] = checked_array(meta[key], shape, path, key)
        return meta


class LLFF(Loader):
    """`poses_bounds.npy` and `images[_factor]/`, as LLFF's forward-facing captures have them."""

    folders = ("nerf_llff_data",)
    num_channels = 3

    def load(self, split):
        config = self.config
        folder = image_folder(self.root, config.factor)
        files = image_utils.list_images(folder)
        poses, bounds, full_sizes, focals = self._poses_bounds(len(files), folder)
        scale = 1 / (0.75 * bounds.min())
        bounds = bounds * scale
        camtoworlds, transform = self._align_poses(poses, pose_utils.scaling(scale))
        if config.spherify:
            bounds = bounds * np.cbrt(np.linalg.det(transform[:3, :3])) / scale
        sizes, pixtocams, focal = self._intrinsics(files, full_sizes, focals)
        near, far = self._near_far(bounds)
        all_cameras = make_cameras(camtoworlds, pixtocams, sizes, near=near, far=far)
        if config.ndc:
            check_forward_facing(all_cameras, files)
            all_cameras = replace(all_cameras, ndc=(focal, *(int(side) for side in sizes[0])))
        box = cube(1.0) if config.spherify else ray_box(all_cameras)
        index = every_nth(split, len(files), config.llffhold, folder)
        return self.make_scene(
            files=[files[i] for i in index], names=[files[i].name for i in index],
            cameras=all_cameras[torch.as_tensor(index)], box=box,
            world_to_scene=torch.as_tensor(transform, dtype=torch.float32),
        )

    def write_demo(self, folder):
        write_llff(folder)

    def _poses_bounds(self, num_images, folder):
        """Poses, bounds `[N, 2]`, full sizes `[N, 2]` and focal lengths `[N]` as in the file."""
        path = self.root / "poses_bounds.npy"
        try:
            with open(path, "rb") as file:
                table = np.lib.format.read_array(file, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; check --scene and --dataset_name.") from None
        except Exception as error:  # A damaged header fails in many ways.
            raise UserError(f"{path} is not a NumPy array ({first_line(error)}).") from None
        rows_fit = table.ndim == 2 and table.shape[1] == 17 and len(table) > 0
        if not rows_fit or table.dtype.kind not in "fiu":
            raise UserError(f"{path} has {table.dtype} numbers of shape {table.shape}; real ones "
                            "of shape [N, 17] are wanted.")
        if len(table) != num_images:
            raise UserError(f"{path} has {len(table)} poses but {folder} has {num_images} images.")
        table = table.astype(np.float64)
        matrices = table[:, :15].reshape(-1, 3, 5)
        down, right, rest = np.split(matrices[:, :, :4], [1, 2], axis=2)
        names = [f"row {i}" for i in range(len(table))]
        poses = checked_poses(np.concatenate([right, -down, rest], axis=2), path, names)
        bounds, hwf = table[:, 15:], matrices[:, :, 4]
        if not np.isfinite(table).all() or (hwf <= 0).any():
            raise UserError(f"{path} has a size or focal length that is no number above 0.")
        if (bounds[:, 0] <= 0).any() or (bounds[:, 0] >= bounds[:, 1]).any():
            raise UserError(f"{path} has bounds that are not 0 < near < far.")
        return poses, bounds, hwf[:, [1, 0]], hwf[:, 2]

    def _align_poses(self, poses, scaling):
        """The scaled world, recentred over all views, and spherified when asked."""
        with np.errstate(all="ignore"):
            poses = pose_utils.transform_poses(poses, scaling)
            poses, transform = pose_utils.recentre(poses)
            transform = transform @ scaling
            if self.config.spherify and np.isfinite(poses).all():
                poses, to_sphere = pose_utils.spherify(poses)
                transform = to_sphere @ transform
        if not np.isfinite(poses).all():
            raise UserError(f"the cameras in {self.root / 'poses_bounds.npy'} have no mean "
                            "direction or lie in one point, so they cannot be aligned.")
        return poses, transform

    def _near_far(self, bounds):
        if self.config.ndc:
            near, far = 0.0, 1.0
        else:
            near, far = 0.9 * bounds.min(), bounds.max()
        return near_far(self.config, near, far)

    def _intrinsics(self, files, full_sizes, focals):
        """Sizes, pixel-to-camera matrices, and the focal length that NDC uses."""
        sizes, pixtocams, factor = [], [], self.config.factor
        for file, full, focal in zip(files, full_sizes, focals, strict=True):
            size = np.array(image_utils.image_size(file))
            wanted = full / factor
            if not fits(size, wanted):
                raise UserError(
                    f"{file} is {size[0]}x{size[1]}, but poses_bounds.npy says {full[0]:.0f}x"
                    f"{full[1]:.0f} in full, so {wanted[0]:.0f}x{wanted[1]:.0f} at --factor "
                    f"{factor}."
                )
            focal_x, focal_y = focal * size / full
            sizes.append(size)
            pixtocams.append(pixtocam(focal_x, focal_y, *size))
        return sizes, pixtocams, float(focals[0] * sizes[0][0] / full_sizes[0][0])


DATASETS = {"blender": Blender, "colmap": Colmap, "llff": LLFF, "multicam": Multicam,
            "nerfstudio": Nerfstudio, "nerv": LitBlender}


def convert_to_multiscale(blender_dir, out_dir, num_scales=4):
    """Write a Blender scene as the multiscale scene of mip-NeRF's official code, to the byte.

    Each image is halved `num_scales` - 1 times by the mean of 2x2 straight RGBA values in
    float32, and each is saved by truncation; level j weighs 4^j. Splits that the source lacks are
    left out. Raises UserError where a side is odd before the last level.
    """
    blender_dir, out_dir = Path(blender_dir), Path(out_dir)
    splits = [s for s in SPLITS if (blender_dir / f"transforms_{s}.json").exists()]
    if not splits:
        raise UserError(f"{blender_dir} has no transforms_*.json; a Blender scene is wanted.")
    if out_dir.exists():
        raise UserError(f"{out_dir} is there already; remove it or choose another folder.")
    with new_folder(out_dir) as folder:
        meta = {s: _convert_split(blender_dir, folder, s, num_scales) for s in splits}
        (folder / "metadata.json").write_text(json.dumps(meta, indent=1))


def _convert_split(blender_dir, folder, split, num_scales):
    path = blender_dir / f"transforms_{split}.json"
    transforms = read_json(path)
    angle = checked_angle(transforms, path)
    meta = {key: [] for key in (*Multicam.KEYS, "focal")}
    (folder / f"images_{split}").mkdir()
    for i, (source, matrix) in enumerate(zip(*read_frames(transforms, path), strict=True)):
        file = png_file(blender_dir, source)
        image = image_utils.read_image(file, 4).astype(np.float32) / 255
        focal = 0.5 * image.shape[1] / math.tan(0.5 * angle)
        for level in range(num_scales):
            height, width = image.shape[:2]
            name = f"images_{split}/{i:03d}_d{level}.png"
            image_utils.write_image(folder / name, np.uint8(image * 255))
            scaled = focal / 2**level
            row = {
                "file_path": name, "cam2world": matrix, "width": width,
                "height": height, "focal": scaled, "label": level, "near": 2.0, "far": 6.0,
                "lossmult": 4.0**level,
                "pix2cam": pixtocam(scaled, scaled, width, height).tolist(),
            }
            for key, value in row.items():
                meta[key].append(value)
            if level < num_scales - 1:
                image = _downsample_by_two(image, file, num_scales)
    return meta


def _downsample_by_two(image, file, num_scales):
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        raise UserError(f"{file} comes to {width}x{height}, which cannot be halved for "
                        f"--num_scales {num_scales}; use fewer scales.")
    return image.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))
