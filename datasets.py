"""Random ray batches and whole images of a scene. Formats are in loaders/."""

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import image_utils
import pose_utils
from loaders.base import SPLITS, Loader
from loaders.blender import Blender
from loaders.bounds import cube
from loaders.checks import (
    check_array,
    check_forward_facing,
    check_masks,
    check_poses,
    check_string,
    near_far,
    read_json,
)
from loaders.colmap import Colmap
from loaders.folders import (
    every_nth,
    find_masks,
    find_scene,
    has_size,
    image_channels,
    image_folder,
)
from loaders.lenses import check_focal, make_cameras, pixtocam
from loaders.lit import LitBlender
from loaders.multiscale import METADATA_KEYS, convert_to_multiscale
from loaders.nerfstudio import Nerfstudio
from loaders.pixels import Source, memory_mapped, read_masks_of
from loaders.points import points_of_scene, with_bounds
from loaders.scales import image_sources
from models.outliers import cell_index
from ray_utils import image_rays, pixels_to_rays, ray_box
from runtime import distributed
from runtime.errors import UserError, first_line
from runtime.numbers import SMALLEST, check_numbers
from runtime.reading import read_bytes
from sparse.supervision import point_rays
from structures import Batch, Cameras, Scene


def load_dataset(config, split: str, device: str | torch.device = "cpu",
                 read_pixels: bool = True) -> "NeRFDataset":
    """The `NeRFDataset` of a config's scene at `split` ("train", "val", "test").

    Falls back to "test" if there is no "val" split; `dataset.split` is the one in use. Rays and
    colours arrive on `device`; pixels stay on the CPU. With `read_pixels=False` images are read
    lazily, and `batch` is unavailable. Raises UserError for missing or inconsistent files.
    """
    return NeRFDataset(DATASETS[config.dataset_name](config), split, device, read_pixels)


# Pixels.


class NeRFDataset:
    """Images with known cameras: random pixels for training, whole images for evaluation.

    loader: the scene's format (`loaders.base.Loader`).
    """

    def __init__(self, loader: Loader, split: str, device: str | torch.device = "cpu",
                 read_pixels: bool = True):
        self.loader, self.config, self.device = loader, loader.config, torch.device(device)
        self.split = loader.existing_split(split)
        self.scene = loader.load(self.split)
        if read_pixels:
            self.scene = self._with_pixels(self.scene)
        if read_pixels and self.split == "train" and self.config.depth_points:
            points = points_of_scene(loader, self.scene, self.split)
            self.scene = replace(with_bounds(loader, self.scene, points), points=points)
        self.point_rays = point_rays(self.scene)
        self.cameras = self.scene.cameras.to(self.device)
        self.lights = self.scene.lights and self.scene.lights.to(self.device)

    @property
    def split_name(self) -> str:
        """The split in use as part of a file name."""
        return self.loader.split_name(self.split)

    def scenes(self) -> dict[str, Scene]:
        """The scenes of all splits, without pixels."""
        return {split: with_bounds(self.loader, scene, self.scene.points)
                for split, scene in self.loader.scenes().items()}

    def check_same_scene(self, scenes: dict[str, Scene]) -> None:
        """Raise UserError unless a run's `scenes` have this scene's cameras and lights."""
        known, found = scenes.get(self.split), self.scene.cameras
        if known is None or len(known.cameras) != len(found) or any(
            not torch.allclose(getattr(known.cameras, name), getattr(found, name), atol=1e-5)
            for name in ("camtoworlds", "pixtocams")
        ):
            raise UserError(f"the {self.split} cameras in {self.loader.root} are not those of the "
                            "run; set --data_dir or --scene to where its scene is now.")
        if known.lights and self.scene.lights and not known.lights.is_close(self.scene.lights):
            raise UserError(f"the {self.split} lights in {self.loader.root} are not those of the "
                            "run; set --data_dir or --scene to where its scene is now, or "
                            "restore its files.")

    def with_cameras(self, cameras: Cameras) -> "NeRFDataset":
        """The same images seen by other cameras: rays come from these."""
        other = copy.copy(self)
        other.cameras = cameras.to(self.device)
        return other

    def __len__(self) -> int:
        return len(self.scene.names)

    @property
    def num_photographs(self) -> int:
        """Number of photographs, each of which is an image at every one of `--scales`."""
        return len(self) // len(self.config.scales)

    def batch(self, batch_size: int, generator: torch.Generator | None = None,
              rows: slice = slice(None), num_points: int = 0) -> Batch:
        """Sample `batch_size` pixels with the CPU `generator`; a flat `Batch`.

        rows: the slice of that batch to return (a rank's). num_points: how many of the pixels are
        those of observed points, if any are known; the weights of their distances add up to 1.
        """
        index = self._sample_pixels(batch_size, generator)
        distance = weight = None
        if num_points and self.point_rays:
            index, distance, weight = self.point_rays.replace_last(index, num_points, generator)
        index = index[rows]
        cam_idx = torch.searchsorted(self.scene.offsets, index, right=True) - 1
        within = index - self.scene.offsets[cam_idx]
        width = self.scene.cameras.sizes[cam_idx, 0]
        cam_idx, x, y, pixels, batch_index = map(self._on_device, (
            cam_idx, within % width, within // width, self.scene.pixels[index],
            torch.arange(batch_size)[rows]))
        masks, rays = self.scene.masks, pixels_to_rays(self.cameras, cam_idx, x, y)
        return Batch(
            rays=replace(rays, lights=self.lights and self.lights[cam_idx],
                         image_idx=rays.cam_idx % self.num_photographs
                         if self._has_embeddings() else None),
            rgb=self.loader.to_rgb(pixels, self.scene.background),
            mask=None if masks is None else self._on_device(masks[index, None]).float(),
            pixels=torch.stack([x, y], dim=-1), batch_index=batch_index,
            cells=self._cells(cam_idx, x, y) if self.config.robust else None,
            distance=None if distance is None else self._on_device(distance[rows]),
            distance_weight=None if weight is None else self._on_device(weight[rows]),
        )

    def _cells(self, cam_idx, x, y):
        """The cell of each pixel in an `OutlierMap`; images at all scales share theirs."""
        return cell_index(cam_idx % self.num_photographs, x, y, *self.cameras.sizes[cam_idx].T)

    def image(self, index: int) -> Batch:
        """All pixels of one image, row by row: a `Batch` of shape `[h, w]`."""
        width, height = self.scene.cameras.sizes[index].tolist()
        pixels = self._on_device(self._pixels_of(index)).reshape(height, width, -1)
        rays = image_rays(self.cameras, index)
        rays = rays.with_lights(self.lights[index]) if self.lights else rays
        return Batch(rays=rays, rgb=self.loader.to_rgb(pixels, self.scene.background),
                     mask=self.mask(index))

    def mask(self, index: int) -> Tensor | None:
        """The valid pixels of one image: `[h, w, 1]`, 1 or 0; None if all are."""
        mask = self._mask_of(index)
        if mask is None:
            return None
        width, height = self.scene.cameras.sizes[index].tolist()
        return self._on_device(mask).reshape(height, width, 1).float()

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """Further ground truth of one image: a `dict` of float arrays `[h, w, C]` in [0, 1]."""
        return self.loader.ground_truth(self.scene, index)

    def _has_embeddings(self):
        """Whether rays name their image, for its appearance embedding."""
        return self.split == "train" and self.config.glo_features > 0

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
        masks = self._with_alpha(masks, pixels)
        if masks is not None:
            check_masks(masks, loader.root, bool(scene.mask_files))
        return replace(scene, pixels=pixels, masks=masks)

    def _with_alpha(self, masks, pixels):
        """Masks `[P]`, or None, without transparent `pixels [P, C]` if alpha is a mask."""
        if self.config.alpha == "composite" or pixels.shape[-1] < 4:
            return masks
        opaque = (pixels[:, 3] == 255).to(torch.uint8)
        return opaque if masks is None else masks * opaque

    @property
    def is_transparent(self) -> bool:
        """Whether pixels are composited onto the background."""
        pixels = self.scene.pixels
        return (self.config.alpha == "composite" and pixels.shape[-1] == 4
                and bool((pixels[:, 3] < 255).any()))

    def _read_or_map(self, files: Sequence, num_bytes: int, read: Callable) -> Tensor:
        """Bytes `[P, num_bytes]` of all pixels, memory-mapped above `--pixel_memory`."""
        sources = self._sources(files)
        budget = self.config.pixel_memory * 1e9 / distributed.ranks_of_machine()
        if int(self.scene.offsets[-1]) * num_bytes <= budget:
            return read(sources).reshape(-1, num_bytes)
        return memory_mapped(self.loader.root, sources, num_bytes, read)

    def _sources(self, files: Sequence) -> list[Source]:
        """The `Source` of each image or mask file of the scene."""
        return image_sources(files, self.scene.cameras.sizes, self.config.scales)

    def _pixels_of(self, index):
        """The stored pixels `[h * w, C]` of one image, from memory or from its file."""
        if self.scene.pixels is not None:
            return self.scene.pixels[slice(*self.scene.offsets[index : index + 2].tolist())]
        pixels = self.loader.read(self._sources(self.scene.files)[index : index + 1])
        return pixels.view(self.loader.pixel_type)

    def _mask_of(self, index):
        """The mask `[h * w]` of one image, from memory or from its files; None without masks."""
        if self.scene.masks is not None:
            return self.scene.masks[slice(*self.scene.offsets[index : index + 2].tolist())]
        masks = None
        if self.scene.mask_files:
            masks = read_masks_of(self._sources(self.scene.mask_files)[index : index + 1])
        return self._with_alpha(masks, self._pixels_of(index))

    def _on_device(self, tensor):
        """Copy to the device; on CUDA from pinned memory, so that the copy does not block."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


# Formats. Blender, COLMAP, nerfstudio and NeRV are in loaders/.


class Multicam(Loader):
    """mip-NeRF's multiscale scenes: `metadata.json` and RGBA PNGs of several sizes."""

    folders = ("nerf_multiscale",)
    marker = "metadata.json"
    SHAPES = {"pix2cam": (3, 3), "width": (), "height": (), "near": (), "far": (),
              "lossmult": (), "label": ()}

    def load(self, split: str) -> Scene:
        path = self.root / "metadata.json"
        meta = self._split_metadata(read_json(path), split, path)
        names = [check_string(name, path, "file_path") for name in meta["file_path"]]
        files = [self.root / name for name in names]
        sizes = np.stack([meta["width"], meta["height"]], axis=-1)
        for file, size in zip(files, sizes, strict=True):
            found = image_utils.image_size(file)
            if found != tuple(size):
                raise UserError(f"{file} is {found[0]}x{found[1]}, but {path} gives "
                                f"{size[0]:g}x{size[1]:g}.")
        if self.config.factor != 1:
            raise UserError(f"--factor {self.config.factor} was given; a Multicam scene holds its "
                            "own scales, so only --factor 1 fits.")
        near, far = near_far(self.config, meta["near"], meta["far"])
        cameras = make_cameras(
            check_poses(meta["cam2world"], path, names), meta["pix2cam"], sizes,
            near=near, far=far, lossmult=meta["lossmult"],
        )
        return self.make_scene(
            files=files, names=names,
            cameras=cameras, labels=torch.as_tensor(meta["label"]).long(),
            world_to_scene=torch.eye(4, dtype=torch.float64),
            box=cube(float(np.max(far - near)) / 2),
        )

    def splits(self) -> tuple[str, ...]:
        meta = read_json(self.root / "metadata.json")
        return tuple(split for split in SPLITS if split in meta)

    def write_demo(self, folder: Path) -> None:
        from procedural.scene import write_blender

        blender = find_scene(self.config, Blender.folders, write_blender)
        # So many the official script makes of 200 pixels: it halves once more than it writes.
        convert_to_multiscale(blender, folder, num_scales=3)

    def _split_metadata(self, meta, split, path):
        """The lists of a split as arrays, by key. Raises UserError if they are inconsistent."""
        if not isinstance(meta.get(split), dict):
            raise UserError(f"{path} has no split {split!r}; it holds {', '.join(meta) or 'none'}.")
        meta = meta[split]
        missing = [key for key in METADATA_KEYS if not isinstance(meta.get(key), list)]
        if missing:
            raise UserError(f"the split {split!r} in {path} has no list {', '.join(missing)}.")
        counts = {key: len(meta[key]) for key in METADATA_KEYS}
        if len(set(counts.values())) != 1 or not meta["file_path"]:
            raise UserError(f"the lists of {split!r} in {path} have {counts} entries; equal counts "
                            "of at least 1 are expected.")
        for key, shape in self.SHAPES.items():
            meta[key] = check_array(meta[key], shape, path, key)
        return meta


class LLFF(Loader):
    """LLFF's forward-facing captures: `poses_bounds.npy` and `images[_factor]/`."""

    folders = ("nerf_llff_data",)
    marker = "poses_bounds.npy"

    @cached_property
    def num_channels(self) -> int:
        """4 if an image has an alpha channel, else 3."""
        files = image_utils.list_images(image_folder(self.root, self.config.factor))
        return image_channels(files, self.root, self.config.alpha)

    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.config.llffhold else ("train",)

    def load(self, split: str) -> Scene:
        config = self.config
        folder = image_folder(self.root, config.factor)
        files = image_utils.list_images(folder)
        poses, bounds, full_sizes, focals = self._poses_bounds(len(files), folder)
        scale = 1 / (0.75 * bounds.min())
        bounds = bounds * scale
        camtoworlds, transform = self._align_poses(poses, pose_utils.scaling(scale))
        if config.spherify:
            bounds = bounds * pose_utils.scale_of(transform) / scale
        sizes, pixtocams, focal = self._intrinsics(files, full_sizes, focals)
        near, far = self._near_far(bounds, pose_utils.scale_of(transform))
        all_cameras = make_cameras(camtoworlds, pixtocams, sizes, near=near, far=far)
        if config.spherify:
            # The rays may reach farther.
            all_cameras = replace(all_cameras, visible_range=_range_of(bounds))
        if config.ndc:
            check_forward_facing(all_cameras, files)
            all_cameras = replace(all_cameras, ndc=(focal, *(int(side) for side in sizes[0])))
        box = cube(1.0) if config.spherify else ray_box(all_cameras)
        index = every_nth(split, len(files), config.llffhold, folder)
        files = [files[i] for i in index]
        names = [file.relative_to(folder).as_posix() for file in files]
        return self.make_scene(
            files=files, names=names, mask_files=find_masks(self.root, files, names),
            cameras=all_cameras[torch.as_tensor(index)], box=box,
            world_to_scene=torch.as_tensor(transform),
        )

    def write_demo(self, folder: Path) -> None:
        from procedural.scene import write_llff

        write_llff(folder)

    def _poses_bounds(self, num_images, folder):
        """Poses, bounds `[N, 2]`, full sizes `[N, 2]` and focal lengths `[N]` as in the file."""
        path = self.root / "poses_bounds.npy"
        table = self._read_table(path)
        if len(table) != num_images:
            raise UserError(f"{path} has {len(table)} poses but {folder} has {num_images} images.")
        matrices = table[:, :15].reshape(-1, 3, 5)
        down, right, rest = np.split(matrices[:, :, :4], [1, 2], axis=2)
        names = [f"row {i}" for i in range(len(table))]
        poses = check_poses(np.concatenate([right, -down, rest], axis=2), path, names)
        hwf = check_numbers(matrices[:, :, 4], (-1, 3), path, "sizes and focal lengths",
                            low=SMALLEST)
        bounds = check_numbers(table[:, 15:], (-1, 2), path, "bounds", low=SMALLEST)
        if (bounds[:, 0] >= bounds[:, 1]).any():
            raise UserError(f"{path} has bounds that are not 0 < near < far.")
        return poses, bounds, hwf[:, [1, 0]], hwf[:, 2]

    def _read_table(self, path):
        """The array `[N, 17]` of `poses_bounds.npy`. Raises UserError if the file is damaged."""
        content = read_bytes(path, "check --scene and --dataset_name")
        try:
            table = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # A damaged header fails in many ways.
            raise UserError(f"{path} is not a NumPy array ({first_line(error)}).") from None
        kind = table.dtype.kind
        if table.ndim != 2 or table.shape[1] != 17 or not table.size or kind not in "fiu":
            raise UserError(f"{path} has {table.dtype} numbers of shape {table.shape}; real ones "
                            "of shape [N, 17] are expected.")
        return table.astype(np.float64)

    def _align_poses(self, poses, scaling):
        """Poses scaled and recentred (with `--spherify` also spherified), and the similarity."""
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

    def _near_far(self, bounds, scale):
        """The range of t: [0, 1] in NDC, else from the bounds of all views."""
        if self.config.ndc:
            near, far = 0.0, 1.0
        else:
            near, far = _range_of(bounds)
        return near_far(self.config, near, far, scale)

    def _intrinsics(self, files, full_sizes, focals):
        """Sizes and pixel-to-camera matrices per image, and the focal length for NDC."""
        sizes, pixtocams, factor = [], [], self.config.factor
        for file, full, focal in zip(files, full_sizes, focals, strict=True):
            size = np.array(image_utils.image_size(file))
            expected = full / factor
            if not has_size(size, expected):
                raise UserError(
                    f"{file} is {size[0]}x{size[1]}, but poses_bounds.npy gives {full[0]:.0f}x"
                    f"{full[1]:.0f} at full size, so {expected[0]:.0f}x{expected[1]:.0f} at "
                    f"--factor {factor}.")
            check_focal((focal, focal), full, self.root / "poses_bounds.npy")
            focal_x, focal_y = focal * size / full
            sizes.append(size)
            pixtocams.append(pixtocam(focal_x, focal_y, *size))
        return sizes, pixtocams, float(focals[0] * sizes[0][0] / full_sizes[0][0])


def _range_of(bounds):
    """The range of t that holds the bounds `[N, 2]` of all views."""
    return float(0.9 * bounds.min()), float(bounds.max())


# In the order in which the format of a folder is detected: a multiscale or COLMAP scene may also
# hold the marker of a later format.
DATASETS: dict[str, type[Loader]] = {
    "multicam": Multicam, "blender": Blender, "nerv": LitBlender, "colmap": Colmap,
    "nerfstudio": Nerfstudio, "llff": LLFF,
}
