"""The project as a method of nerfbaselines: `Method`'s interface, without importing nerfbaselines.

It trains by the steps of `train.py` and renders as `evaluate.py` does. Registered by
`nerfbaselines_method.py`.
"""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import image_utils  # noqa: E402
import pose_utils  # noqa: E402
from checkpoint import load_checkpoint, write_config  # noqa: E402
from config import BY_NAME, get_config, saved_flags  # noqa: E402
from datasets import DATASETS  # noqa: E402
from image_utils import mse_to_psnr  # noqa: E402
from loaders.lenses import make_cameras, make_lens  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from rendering import render_image, world_distance  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from scheduler import make_scheduler  # noqa: E402
from train import plan_training, rank_slice, train_step, with_default_preset  # noqa: E402

# Our names of the camera models 0, 1, 2 of nerfbaselines, and the order of its distortion.
LENS_MODELS = {"pinhole": "PINHOLE", "opencv": "OPENCV", "opencv_fisheye": "OPENCV_FISHEYE"}
DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4")

# nerfbaselines saves and scores itself.
WITHOUT_SCORES = {"eval_every": 0, "final_eval": False}


class MipNeRF:
    """A model in nerfbaselines: in training, if there is a `train_dataset`, or only to render.

    checkpoint: a folder written by `save`, or a run folder of `train.py`; config_overrides: flags
    of `train.py` by name. Images are read from the files that the dataset names, by the loader of
    their format. Raises UserError if that loader would train on other images.
    """

    def __init__(self, *, checkpoint=None, train_dataset=None, config_overrides=None):
        if checkpoint is None and train_dataset is None:
            raise UserError("neither a checkpoint nor a training set was given; one is needed.")
        self.run = self.training = None
        if checkpoint is not None:
            self.run = load_checkpoint(checkpoint, "auto")
            self._use(self.run.config, self.run.model, self.run.scene["train"], self.run.step)
        if train_dataset is not None:
            self._start_training(train_dataset, config_overrides or {})

    @classmethod
    def get_method_info(cls):
        """Needs and outputs of the method; nerfbaselines' registry fills in its name."""
        return {"method_id": "", "required_features": frozenset({"color"}),
                "supported_camera_models": frozenset(LENS_MODELS),
                "supported_outputs": ("color", "depth", "accumulation"),
                "can_resume_training": True}

    def get_info(self):
        """The method's info with that of this model."""
        return self.get_method_info() | {
            "num_iterations": self.config.max_steps, "batch_size": self.config.batch_size,
            "loaded_step": self.run and self.run.step,
            "loaded_checkpoint": self.run and str(self.run.path.parent),
            "hparams": saved_flags(self.config)}

    def train_iteration(self, step):
        """Take one training step; returns its loss and PSNR."""
        scalars, self.micro_batch = train_step(
            self.training, self.schedule, step, self.rows, self.micro_batch)
        self.step = step + 1
        return {"loss": float(scalars["loss/total"]), "num_rays": self.config.batch_size,
                "psnr": float(mse_to_psnr(scalars["errors"][-1]))}

    def render(self, camera, *, options=None):
        """Render the image of one camera; options are not used.

        color: uint8 `[h, w, 3]`, rounded as for our own scores, because nerfbaselines truncates
        floats; depth: distance from the camera in units of the files; accumulation: opacity.
        """
        device = next(self.model.parameters()).device
        cameras = to_cameras(camera.item(), self.scene).to(device)
        rays = image_rays(cameras, 0)
        output = render_image(self.model.eval(), rays, self.config.chunk)
        self.model.train(self.training is not None)
        distance = world_distance(cameras, rays, output.distance_median) / self.scene.scale
        return {"color": image_utils.to_uint8(output.rgb), "depth": distance.cpu().numpy(),
                "accumulation": output.acc.cpu().numpy()}

    def save(self, path):
        """Write a run folder for `train.py` and all tools that read one, and for `__init__`."""
        os.makedirs(path, exist_ok=True)
        write_config(path, self.config)
        if self.training is not None:
            self.training._replace(folder=Path(path)).save(self.step)
        else:
            shutil.copy(self.run.path, path)

    def get_train_embedding(self, index):
        """None: images are rendered without an appearance."""
        return None

    def _start_training(self, dataset, overrides):
        if self.run is None:
            words = command_line(scene_flags(dataset, overrides) | overrides | WITHOUT_SCORES)
            config = get_config(words, "train")
            config = with_default_preset(config, select_device(config))
        else:
            flags = scene_flags(dataset, {"dataset_name": self.run.config.dataset_name})
            config = self.run.config.replace(scene=flags["scene"], **WITHOUT_SCORES)
        self.rows = rank_slice(config)
        training, _ = plan_training(config, select_device(config), Path("."), self.run)
        check_same_images(training.data.train.scene.files, dataset["image_paths"])
        self.training, self.micro_batch = training, training.micro_batch
        self._use(training.config, training.model, training.scenes["train"], training.first_step)
        self.schedule = make_scheduler(training.optimizer, self.config, training.first_step)

    def _use(self, config, model, scene, step):
        """Render by this model. Raises UserError if it needs more than a camera."""
        if config.model == "nerv" or config.refine_cameras:
            cause = "--model nerv, whose images need lights" if config.model == "nerv" else (
                "--refine_cameras, which moves the cameras of the test views")
            raise UserError(f"a run with {cause}, cannot be scored by nerfbaselines; use "
                            "evaluate.py.")
        self.config, self.model, self.scene, self.step = config, model, scene, step


# From nerfbaselines' types to the project's.


def to_cameras(camera, scene):
    """One camera of nerfbaselines (OpenCV axes, the files' world) as `Cameras` of a `Scene`."""
    model = list(LENS_MODELS.values())[int(camera.camera_models)]
    distortion = dict(zip(DISTORTION, map(float, camera.distortion_parameters), strict=False))
    intrinsics = dict(zip(("fx", "fy", "cx", "cy"), map(float, camera.intrinsics), strict=True))
    size = tuple(map(int, camera.image_sizes))
    lens = make_lens(model, intrinsics | distortion, size, "nerfbaselines' dataset")
    pose = np.asarray(camera.poses, np.float64)[:3, :4] * [1, -1, -1, 1]
    moved = pose_utils.transform_poses(pose[None], scene.world_to_scene.cpu().double().numpy())
    one = make_cameras(moved, [lens.pixtocam(*size)], [size], near=0.0, far=1.0)
    has_lens = any(lens.distortion) or lens.fisheye
    return replace(
        scene.cameras[:1].to("cpu"), camtoworlds=one.camtoworlds, pixtocams=one.pixtocams,
        sizes=one.sizes, distortion=torch.tensor([lens.distortion]) if has_lens else None,
        fisheye=torch.tensor([True]) if lens.fisheye else None)


def scene_flags(dataset, overrides):
    """The flags of the scene to which a dataset's image files belong, a `dict`.

    overrides: may give its `dataset_name`; else the format is recognised. Raises UserError if no
    folder above the images is a scene.
    """
    image = Path(os.path.abspath(dataset["image_paths"][0]))
    formats = overrides.get("dataset_name")
    formats = DATASETS if formats is None else {formats: DATASETS[formats]}
    for folder in image.parents:
        for name, loader in formats.items():
            if (folder / loader.marker).exists():
                factor = image.relative_to(folder).parts[0].partition("images_")[2]
                return {"dataset_name": name, "scene": str(folder),
                        "factor": int(factor) if factor.isdigit() else 1}
    raise UserError(f"no folder above {image} is a scene in the format {' or '.join(formats)}; "
                    "images must lie in their dataset's folder.")


def check_same_images(files, wanted):
    """Raise UserError unless two lists name the same image files."""
    files, wanted = ({os.path.abspath(file) for file in names} for names in (files, wanted))
    if files != wanted:
        name = min(files ^ wanted)
        owner = "this project's loader" if name in files else "nerfbaselines"
        raise UserError(f"only {owner} trains on {name}, so the two splits differ; choose another "
                        "--llffhold, or nerfbaselines' loader for this format.")


def command_line(flags):
    """The words of a command line that give flags of a `dict`; text may stand for any value."""
    words = []
    for name, value in flags.items():
        if name in BY_NAME and BY_NAME[name].kind is bool:
            is_on = str(value).lower() in ("true", "1")
            words.append(f"--{name}" if is_on else f"--no-{name}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *map(str, values)]
    return words
