"""Test cameras of a run whose training cameras were refined (CamP, section 5).

Scene and training cameras may drift together, so test cameras are first moved by the similarity
that moves the original training cameras to the refined ones. Then the pose of each is refined on
its own image, while the model stays as it is.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import pose_utils
from cameras.refinement import CameraRefinement
from loss import colour_error
from models.base import RayModel
from runtime import distributed
from runtime.gradients import frozen
from runtime.memory import smaller_until_it_fits
from scheduler import CAMERA_BETAS, learning_rate
from structures import Batch, Cameras

# Learning rate of a test camera, from the first step to the last; most rays of a step, and those of
# a micro-batch.
FIRST_RATE, LAST_RATE, MOST_RAYS, MICRO_BATCH = 1e-3, 1e-4, 10_000, 1024


class TrainingCameras(NamedTuple):
    """Cameras of the training views: as in the scene's files, and refined."""

    original: Cameras
    refined: Cameras


def align_cameras(cameras: Cameras, training: TrainingCameras) -> Cameras:
    """Cameras moved by the similarity from the original to the refined training cameras."""
    poses, source, target = (x.camtoworlds.detach().double().cpu().numpy()
                             for x in (cameras, *training))
    moved = pose_utils.transform_poses(poses, pose_utils.fit_similarity(source, target))
    return replace(cameras, camtoworlds=torch.as_tensor(moved).to(cameras.camtoworlds))


def with_refined_cameras(model: RayModel, dataset, config: Any, training: TrainingCameras):
    """A `NeRFDataset` with the cameras under which a model in eval mode is to be scored.

    Training views have their refined cameras. Those of other views are aligned, and each
    photograph's of which this rank scores an image is refined for `--camera_test_steps` steps, at
    the first scale; its images at other scales share the pose.
    """
    if dataset.split == "train":
        return dataset.with_cameras(training.refined)
    dataset = dataset.with_cameras(align_cameras(dataset.cameras, training))
    if config.camera_test_steps == 0:
        return dataset
    poses = dataset.cameras.camtoworlds.clone()
    with frozen(model):
        count = dataset.num_photographs
        photographs = sorted({i % count for i in distributed.rank_items(range(len(dataset)))})
        for index in tqdm(photographs, desc="refining cameras", disable=distributed.hide_bar()):
            poses[index::count] = refined_pose(model, dataset, index, config)
    return dataset.with_cameras(replace(dataset.cameras, camtoworlds=poses))


def num_refined_rays(dataset, config: Any) -> int:
    """Number of rays whose gradients `with_refined_cameras` needs for all views of a dataset."""
    return dataset.num_photographs * config.camera_test_steps * min(config.batch_size, MOST_RAYS)


def refined_pose(model: RayModel, dataset, index: int, config: Any) -> Tensor:
    """The pose `[3, 4]` of one view of a dataset, refined on random pixels of its image."""
    camera, image = dataset.cameras[index : index + 1], dataset.image(index)
    refinement = CameraRefinement.for_cameras(camera, pose_only=True)
    optimizer = torch.optim.Adam(refinement.parameters(), betas=CAMERA_BETAS)
    generator = torch.Generator().manual_seed(config.seed)
    count, micro_batch = min(config.batch_size, MOST_RAYS), config.micro_batch or MICRO_BATCH
    for step in range(config.camera_test_steps):
        batch = sample_image(image, count, generator)

        def accumulate(size: int, batch: Batch = batch) -> None:
            optimizer.zero_grad()
            for part in batch.split(size):
                part = refinement.cast(camera, part)
                colour_error(model(part.rays)[-1].rgb, part).backward()

        _, micro_batch = smaller_until_it_fits(micro_batch, accumulate)
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, FIRST_RATE, LAST_RATE, config.camera_test_steps)
        optimizer.step()
    return refinement(camera).camtoworlds[0].detach()


def sample_image(image: Batch, count: int, generator: torch.Generator) -> Batch:
    """Random pixels of an image `[h, w]` as the flat batch of a single camera."""
    height, width = image.rays.shape
    index = torch.randint(height * width, (count,), generator=generator).to(image.rgb.device)
    batch = image.map(lambda x: x.reshape(-1, x.shape[-1])[index])
    rays = replace(batch.rays, cam_idx=torch.zeros_like(batch.rays.cam_idx))
    return replace(batch, rays=rays, pixels=torch.stack([index % width, index // width], dim=-1))
