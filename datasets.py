"""Scenes from disk: one class per format, and the batches and images that all of them give.

A format is one class with `load(split) -> Scene` and one line in `DATASETS`. Rays are made when
they are needed, from the cameras; what is kept in memory is the pictures as they were stored.
"""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import demo_lights
import demo_scene
import distributed
import image_utils
import pose_utils
from config import UserError, first_line, resolve_scene
from file_utils import new_folder
from lights import tone_map
from lit_files import (
    frames_lights,
    radiance_file,
    radiance_size,
    read_radiance_of,
    read_truth,
)
from ray_utils import Batch, Scene, image_rays, pixels_to_rays
from scene_files import (
    Views,
    cameras_range,
    check_forward_facing,
    checked_angle,
    checked_array,
    checked_points,
    checked_poses,
    checked_range,
    colmap_lens,
    content_box,
    cube,
    every_nth,
    find_image,
    find_scene,
    fits,
    image_folder,
    import_pycolmap,
    listed_splits,
    make_cameras,
    mapped_bytes_of,
    pixtocam,
    png_file,
    ray_box,
    read_frames,
    read_json,
    read_masks_of,
    read_model,
    read_pixels_of,
    report_left_out,
    reprojection_error,
    seen_range,
    stored_size,
    transforms_lens,
    view_cameras,
)

SPLITS = ("train", "val", "test")


def load_dataset(config, split, device="cpu", read_pixels=True):
    """The dataset of a config's scene, opened at `split` ("train", "val", "test").

    Where there is no "val", it is "test" that is opened, and the dataset's `split` says so.

    Rays and colours arrive on `device`; the pictures stay on the CPU. Without `read_pixels` each
    picture is read when it is asked for, and there are no random batches. Raises UserError for
    anything in the files that does not fit.
    """
    resolve_scene(config)
    return DATASETS[config.dataset_name](config, split, device, read_pixels)


class NeRFDataset(ABC):
    """Pictures with known cameras: random pixels for training, whole images for evaluation.

    A subclass names the `folders` inside `--data_dir` where its scenes lie and the `num_channels`
    of their pictures, and defines `load(split, read_pixels=True) -> Scene` and `splits()`.
    """

    folders = ()
    num_channels = 4
    pixel_type = torch.uint8
    # Of the known points the mean, in pixels of the full size; None where the files do not tell.
    reprojection_error = None

    def __init__(self, config, split, device="cpu", read_pixels=True):
        self.config = config
        self.device = torch.device(device)
        self.root = find_scene(config, self.folders, self.make_demo)
        # The test views serve as validation where there are none for it.
        self.split = "test" if split == "val" and "val" not in self.splits() else split
        self.scene = self.load(self.split, read_pixels)
        self.cameras = self.scene.cameras.to(self.device)
        self.lights = self.scene.lights and self.scene.lights.to(self.device)

    @abstractmethod
    def load(self, split, read_pixels=True):
        """The `Scene` of a split, its pixels None unless they are to be read."""

    def splits(self):
        """The splits that the files hold."""
        return SPLITS

    @abstractmethod
    def make_demo(self, folder):
        """Write the procedural scene into `folder` in this format."""

    def _scene(self, read_pixels, *, files, cameras, names, mask_files=(), **facts):
        """A `Scene` of images whose sizes the cameras tell."""
        ends, masks, pixels = cameras.sizes.prod(dim=-1).cumsum(0), None, None
        if read_pixels:
            pixels = self._bytes(files, cameras.sizes, self.num_channels * self.pixel_type.itemsize,
                                 self._read).view(self.pixel_type)
            if mask_files:
                masks = self._bytes(mask_files, cameras.sizes, 1, read_masks_of)[:, 0]
        return Scene(
            pixels=pixels, offsets=torch.cat([torch.zeros_like(ends[:1]), ends]), cameras=cameras,
            names=tuple(names), files=tuple(map(str, files)), masks=masks,
            mask_files=tuple(mask_files), background=float(self.config.white_bkgd), **facts,
        )

    def _read(self, files, sizes):
        """The pixels of pictures as they are stored, as bytes `[P, B]`."""
        return read_pixels_of(files, sizes, self.num_channels)

    def _bytes(self, files, sizes, num_bytes, read):
        """What `read(files, sizes)` gives, uint8 `[P, num_bytes]`: in memory, if it is small."""
        room = self.config.pixel_memory * 1e9 / distributed.ranks_of_machine()
        if int(sizes.prod(dim=-1).sum()) * num_bytes <= room:
            return read(files, sizes).reshape(-1, num_bytes)
        return mapped_bytes_of(self.root, files, sizes, num_bytes, read)

    def facts(self):
        """Every split's scene without its pixels: `dict` of name to `Scene`."""
        scenes = {split: self.load(split, read_pixels=False) for split in self.splits()}
        return {s: replace(scene, files=(), mask_files=()) for s, scene in scenes.items()}

    @property
    def title(self):
        """What is opened, as part of a file's name."""
        return self.split

    def points(self):
        """Known points `[M, 3]` on surfaces, in the cameras' world; M is 0 if files have none."""
        return np.empty((0, 3))

    def check_is(self, facts):
        """Raise UserError unless `facts`, a run's `dict` of scenes, are of this very scene."""
        known, found = facts.get(self.split), self.scene.cameras
        if known is None or len(known.cameras) != len(found) or any(
            not torch.allclose(getattr(known.cameras, name), getattr(found, name), atol=1e-5)
            for name in ("camtoworlds", "pixtocams")
        ):
            raise UserError(f"the {self.split} cameras in {self.root} are not those of the run; "
                            "set --data_dir or --scene to where its scene lies now.")
        if known.lights and self.scene.lights and not known.lights.is_close(self.scene.lights):
            raise UserError(f"the {self.split} lights in {self.root} are not those of the run; set "
                            "--data_dir or --scene to where its scene lies now, or put its files "
                            "back.")

    def __len__(self):
        return len(self.scene.names)

    def batch(self, batch_size, generator=None, share=slice(None)):
        """`batch_size` random pixels: a flat `Batch`. The CPU `generator` decides which.

        share: a `slice` of the batch, if only a part of it is wanted.
        """
        offsets, sizes = self.scene.offsets, self.scene.cameras.sizes
        if self.config.batching == "single_image":
            image = torch.randint(len(self), (1,), generator=generator)
            first, last = int(offsets[image]), int(offsets[image + 1])
            index = torch.randint(first, last, (batch_size,), generator=generator)
        else:
            index = torch.randint(int(offsets[-1]), (batch_size,), generator=generator)
        index, rows = index[share], torch.arange(batch_size)[share]
        cam_idx = torch.searchsorted(offsets, index, right=True) - 1
        within = index - offsets[cam_idx]
        width = sizes[cam_idx, 0]
        drawn = cam_idx, within % width, within // width, self.scene.pixels[index], rows
        cam_idx, x, y, pixels, rows = map(self._on_device, drawn)
        masks, rays = self.scene.masks, pixels_to_rays(self.cameras, cam_idx, x, y)
        return Batch(
            rays=replace(rays, lights=self.lights and self.lights[cam_idx]),
            rgb=composite(pixels, self.scene.background),
            mask=None if masks is None else self._on_device(masks[index, None]).float(),
            rows=rows,
        )

    def image(self, index):
        """All pixels of one image, in rows: a `Batch` of shape `[h, w]`."""
        width, height = self.scene.cameras.sizes[index].tolist()
        pixels = self._on_device(self._pixels_of(index)).reshape(height, width, -1)
        rays = image_rays(self.cameras, index)
        rays = rays.under(self.lights[index]) if self.lights else rays
        return Batch(rays=rays, rgb=composite(pixels, self.scene.background), mask=self.mask(index))

    def mask(self, index):
        """Which pixels of one image count: `[h, w, 1]`, 1 or 0; None if all do."""
        if not self.scene.mask_files:
            return None
        width, height = self.scene.cameras.sizes[index].tolist()
        return self._on_device(self._mask_of(index)).reshape(height, width, 1).float()

    def _pixels_of(self, index):
        """The pixels `[h * w, C]` of one image, from memory or from its file."""
        offsets = self.scene.offsets[index : index + 2]
        if self.scene.pixels is not None:
            return self.scene.pixels[slice(*offsets.tolist())]
        pixels = self._read(self.scene.files[index : index + 1],
                            self.scene.cameras.sizes[index : index + 1])
        return pixels.view(self.pixel_type)

    def truth(self, index):
        """What else is known of one image: a `dict` of float arrays `[h, w, C]` in [0, 1]."""
        return {}

    def _mask_of(self, index):
        """The mask `[h * w]` of one image, from memory or from its file."""
        if self.scene.masks is not None:
            return self.scene.masks[slice(*self.scene.offsets[index : index + 2].tolist())]
        return read_masks_of(self.scene.mask_files[index : index + 1],
                             self.scene.cameras.sizes[index : index + 1])

    def _on_device(self, tensor):
        """Without waiting for the device, which CUDA does for pinned memory alone."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def composite(pixels, background):
    """Pixels `[..., C]` as they are stored as float RGB `[..., 3]` in [0, 1], over a background.

    Linear radiance, in half floats, is tone-mapped first.
    """
    if pixels.dtype == torch.float16:
        radiance, alpha = pixels.float().split([3, 1], dim=-1)
        return tone_map(radiance) + background * (1 - alpha)
    values = pixels.float() / 255
    if values.shape[-1] == 3:
        return values
    rgb, alpha = values[..., :3], values[..., 3:]
    return rgb * alpha + background * (1 - alpha)


# The formats.


class Blender(NeRFDataset):
    """`transforms_{train,val,test}.json` and RGBA PNGs, as NeRF's synthetic scenes have them."""

    folders = ("nerf_synthetic",)

    def load(self, split, read_pixels=True):
        config, path = self.config, self.path_of(split)
        meta = read_json(path)
        names, matrices = read_frames(meta, path)
        files = [self.file_of(path.parent, name) for name in names]
        camtoworlds = checked_poses(matrices, path, names)
        angle = checked_angle(meta, path)
        sizes, pixtocams = [], []
        for file in files:
            width, height = self.size_of(file)
            if min(width, height) < config.factor:
                raise UserError(f"{file} is {width}x{height}; --factor {config.factor} leaves "
                                "no pixel.")
            small = width // config.factor, height // config.factor
            focal = 0.5 * small[0] / math.tan(0.5 * angle)
            # Where the factor leaves a rest, the two sides shrink by different amounts.
            focal_y = focal * (width / small[0]) * (small[1] / height)
            sizes.append(small)
            pixtocams.append(pixtocam(focal, focal_y, *small))
        near, far = checked_range(config.near, config.far, config.lindisp)
        return self._scene(
            read_pixels, files=files, names=names,
            cameras=make_cameras(camtoworlds, pixtocams, sizes, near=near, far=far),
            world_to_scene=torch.eye(4), box=cube(float(far - near) / 2),
            lights=self.lights_of(meta, path),
        )

    def path_of(self, split):
        """The JSON file of a split."""
        return self.root / f"transforms_{split}.json"

    def file_of(self, folder, name):
        """The picture that a frame names."""
        return png_file(folder, name)

    def size_of(self, file):
        """Width and height of a picture, from its header alone."""
        return image_utils.image_size(file)

    def lights_of(self, meta, path):
        """The `Lights [N, K]` of a file's frames; None where they are not known."""
        return None

    def splits(self):
        return tuple(s for s in SPLITS if self.path_of(s).exists())

    def make_demo(self, folder):
        demo_scene.write_blender(folder)


class Nerv(Blender):
    """Pictures in linear radiance under known lights, as NeRV's scenes have them.

    `train_point/transforms_train.json` and `transforms_test.json` are Blender's, and each frame
    tells its point lights; for environments it is `train_env/` and `test_env/`.
    """

    folders = ("nerv", "nerv_public_release")
    pixel_type = torch.float16

    @property
    def title(self):
        return self.split if self.config.lights == "point" else f"{self.split}_env"

    def path_of(self, split):
        sets = {"point": ("train_point", "."), "env": ("train_env", "test_env")}
        folder = sets[self.config.lights][split != "train"]
        return self.root / folder / f"transforms_{split}.json"

    def file_of(self, folder, name):
        return radiance_file(folder, name)

    def size_of(self, file):
        return radiance_size(file)

    def lights_of(self, meta, path):
        return frames_lights(meta, path, self.config.light_intensity)

    def make_demo(self, folder):
        demo_lights.write_nerv(folder)

    def truth(self, index):
        return read_truth(self.scene.files[index], self.scene.cameras.sizes[index].tolist())

    def _read(self, files, sizes):
        return read_radiance_of(files, sizes)


class Multicam(NeRFDataset):
    """`metadata.json` and RGBA PNGs of several sizes, as mip-NeRF's multiscale scenes have them."""

    folders = ("nerf_multiscale",)
    keys = ("file_path", "cam2world", "pix2cam", "width", "height", "near", "far", "lossmult",
            "label")
    numbers = {"pix2cam": (3, 3), "width": (), "height": (), "near": (), "far": (),
               "lossmult": (), "label": ()}

    def load(self, split, read_pixels=True):
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
        near, far = checked_range(
            meta["near"] if self.config.near is None else self.config.near,
            meta["far"] if self.config.far is None else self.config.far,
            self.config.lindisp,
        )
        cameras = make_cameras(
            checked_poses(meta["cam2world"], path, names), meta["pix2cam"], sizes,
            near=near, far=far, lossmult=meta["lossmult"],
        )
        return self._scene(
            read_pixels, files=files, names=names,
            cameras=cameras, labels=torch.as_tensor(meta["label"]).long(),
            world_to_scene=torch.eye(4), box=cube(float(np.max(far - near)) / 2),
        )

    def splits(self):
        meta = read_json(self.root / "metadata.json")
        return tuple(split for split in SPLITS if split in meta)

    def make_demo(self, folder):
        blender = find_scene(self.config, Blender.folders, demo_scene.write_blender)
        # 100 pixels halve evenly only twice.
        convert_to_multiscale(blender, folder, num_scales=3)

    def _split(self, meta, split, path):
        if not isinstance(meta.get(split), dict):
            raise UserError(f"{path} has no split {split!r}; it holds {', '.join(meta) or 'none'}.")
        meta = meta[split]
        missing = [key for key in self.keys if not isinstance(meta.get(key), list)]
        if missing:
            raise UserError(f"the split {split!r} in {path} has no list {', '.join(missing)}.")
        counts = {key: len(meta[key]) for key in self.keys}
        if len(set(counts.values())) != 1 or not meta["file_path"]:
            raise UserError(f"the lists of {split!r} in {path} have {counts} entries; equal counts "
                            "of at least 1 are wanted.")
        for key, shape in self.numbers.items():
            meta[key] = checked_array(meta[key], shape, path, key)
        return meta


class LLFF(NeRFDataset):
    """`poses_bounds.npy` and `images[_factor]/`, as LLFF's forward-facing captures have them."""

    folders = ("nerf_llff_data",)
    num_channels = 3

    def load(self, split, read_pixels=True):
        config = self.config
        folder = image_folder(self.root, config.factor)
        files = image_utils.list_images(folder)
        poses, bounds, full_sizes, focals = self._poses_bounds(len(files), folder)
        scale = 1 / (0.75 * bounds.min())
        bounds = bounds * scale
        camtoworlds, transform = self._aligned(poses, pose_utils.scaling(scale))
        if config.spherify:
            bounds = bounds * np.cbrt(np.linalg.det(transform[:3, :3])) / scale
        sizes, pixtocams, focal = self._intrinsics(files, full_sizes, focals)
        near, far = self._range(bounds)
        everything = make_cameras(camtoworlds, pixtocams, sizes, near=near, far=far)
        if config.ndc:
            check_forward_facing(everything, files)
            everything = replace(everything, ndc=(focal, *(int(side) for side in sizes[0])))
        box = cube(1.0) if config.spherify else ray_box(everything)
        index = every_nth(split, len(files), config.llffhold, folder)
        return self._scene(
            read_pixels, files=[files[i] for i in index], names=[files[i].name for i in index],
            cameras=everything[torch.as_tensor(index)], box=box,
            world_to_scene=torch.as_tensor(transform, dtype=torch.float32),
        )

    def make_demo(self, folder):
        demo_scene.write_llff(folder)

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

    def _aligned(self, poses, scaling):
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

    def _range(self, bounds):
        if self.config.ndc:
            near, far = 0.0, 1.0
        else:
            near, far = 0.9 * bounds.min(), bounds.max()
        near = near if self.config.near is None else self.config.near
        far = far if self.config.far is None else self.config.far
        return checked_range(near, far, self.config.lindisp)

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


class Capture(NeRFDataset):
    """Own photographs, with the cameras that structure from motion found for them.

    A subclass defines `read_views() -> Views` and `split_index(split)`.
    """

    @abstractmethod
    def read_views(self):
        """The `Views` of all splits."""

    @abstractmethod
    def split_index(self, split):
        """The indices of a split's views."""

    def load(self, split, read_pixels=True):
        views, index = self.views, self.split_index(split)
        cameras, transform, box = self._world
        return self._scene(
            read_pixels, files=[views.files[i] for i in index],
            names=[views.names[i] for i in index], cameras=cameras[torch.as_tensor(index)],
            mask_files=[views.mask_files[i] for i in index] if views.mask_files else (),
            box=box,
            world_to_scene=torch.as_tensor(transform, dtype=torch.float32),
        )

    @cached_property
    def views(self):
        """What `read_views` tells, read once."""
        return self.read_views()

    def points(self):
        _, transform, _ = self._world
        return pose_utils.transform_points(self.views.points, transform)

    @property
    def reprojection_error(self):
        return self.views.reprojection_error

    @cached_property
    def _world(self):
        """All views' aligned `Cameras`, the similarity that aligned them, and the scene's box."""
        views = self.views
        if np.ptp(views.camtoworlds[:, :, 3], axis=0).max() == 0:
            raise UserError(f"{self.root} has {len(views.names)} camera(s) in one place, which "
                            "tells no scale; views from several places are wanted.")
        camtoworlds, transform = pose_utils.align_pca(views.camtoworlds)
        points = pose_utils.transform_points(views.points, transform)
        cameras = view_cameras(views, camtoworlds)
        near, far = seen_range(cameras, points) or cameras_range(camtoworlds)
        near = near if self.config.near is None else self.config.near
        far = far if self.config.far is None else self.config.far
        near, far = checked_range(near, far, self.config.lindisp)
        return replace(cameras, near=near, far=far), transform, content_box(camtoworlds, points)


class Colmap(Capture):
    """`sparse/0/` (or `sparse/`) and `images[_factor]/`, as COLMAP leaves a reconstruction."""

    folders = ("colmap", "colmap_360")
    num_channels = 3

    def read_views(self):
        folder = image_folder(self.root, self.config.factor)
        path = self.root / "sparse"
        path = path / "0" if (path / "0").is_dir() else path
        model = read_model(path)
        registered = {im.name: im for im in model.images.values() if im.has_pose}
        files = {name: find_image(folder / name) for name in sorted(registered)}
        unknown = set(image_utils.list_images(folder)) - set(files.values())
        names = [name for name, file in files.items() if file is not None]
        report_left_out(folder, f"image(s) that {path} does not place",
                        sorted(file.name for file in unknown))
        report_left_out(path, f"view(s) without an image in {folder}",
                        [name for name, file in files.items() if file is None])
        if not names:
            raise UserError(f"{path} places none of the images in {folder}; check that the two "
                            "belong together.")
        lenses = [colmap_lens(registered[name].camera, path) for name in names]
        files = [files[name] for name in names]
        worldtocams = np.stack([registered[name].cam_from_world().matrix() for name in names])
        return Views(
            names=names, files=files, lenses=lenses, mask_files=[],
            camtoworlds=checked_poses(pose_utils.from_opencv(worldtocams), path, names),
            sizes=[stored_size(file, lens, path)
                   for file, lens in zip(files, lenses, strict=True)],
            points=checked_points(model, path), reprojection_error=reprojection_error(model),
        )

    def split_index(self, split):
        return every_nth(split, len(self.views.names), self.config.llffhold, self.root)

    def make_demo(self, folder):
        import_pycolmap()
        demo_scene.write_colmap(folder)


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
        # Where one of the two is not listed, the other serves as both.
        stand_ins = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}
        chosen = next((lists[s] for s in stand_ins[split] if lists.get(s)), None)
        others = set().union(*lists.values())
        index = [i for i, name in enumerate(self.views.names)
                 if (name not in others if chosen is None else name in chosen)]
        if not index:
            raise UserError(f"{self.path} leaves the {split} split without a view; correct its "
                            "train_filenames, val_filenames and test_filenames, or remove them.")
        return index

    def make_demo(self, folder):
        demo_scene.write_nerfstudio(folder)


DATASETS = {"blender": Blender, "colmap": Colmap, "llff": LLFF, "multicam": Multicam,
            "nerfstudio": Nerfstudio, "nerv": Nerv}


# The multiscale conversion.


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
    meta = {key: [] for key in (*Multicam.keys, "focal")}
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
                image = _halve(image, file, num_scales)
    return meta


def _halve(image, file, num_scales):
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        raise UserError(f"{file} comes to {width}x{height}, which cannot be halved for "
                        f"--num_scales {num_scales}; use fewer scales.")
    return image.reshape(height // 2, 2, width // 2, 2, -1).mean(axis=(1, 3))
