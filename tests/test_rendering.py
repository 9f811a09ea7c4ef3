"""Depth and normals of rendered images, against surfaces with known geometry."""

import pytest
import torch

from config import get_config
from datasets import load_dataset
from rendering import surface_normals, world_distance
from tests.scenes import write_llff


def camera_rays(size=40, width=0.6):
    """Unit view directions `[size, size, 3]` of a camera that looks along -z."""
    position = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(-width * position, width * position, indexing="ij")
    return torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1)


def degrees_between(a, b):
    return torch.rad2deg(torch.acos((a * b).sum(-1).clamp(-1, 1)))


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.3, 0.5, 0.8)])
def test_normals_of_a_plane_are_exact(normal):
    viewdirs = camera_rays()
    normal = torch.nn.functional.normalize(torch.tensor(normal), dim=0)
    distance = -4 / (viewdirs @ normal)
    normals = surface_normals(distance, viewdirs, torch.ones_like(distance))
    assert degrees_between(normals, normal).max() < 0.1


def test_normals_of_a_noisy_sphere_are_smooth_and_zero_beside_it():
    viewdirs = camera_rays(60)
    to_centre = torch.tensor([0.0, 0.0, -4.0])
    along = viewdirs @ to_centre
    inside = 1 - (to_centre.norm() ** 2 - along**2)  # Positive for rays that hit the sphere.
    hit = inside > 0
    exact = along - inside.clamp(min=0).sqrt()
    # Noise of half a pixel's width would tilt normals of finite differences by 30 degrees.
    distance = torch.where(hit, exact + 0.02 * torch.randn(60, 60), 9.0)
    normals = surface_normals(distance, viewdirs, hit.float())
    expected = exact[..., None] * viewdirs - to_centre
    assert degrees_between(normals, expected)[hit & (inside > 0.2)].mean() < 7
    assert (normals[~hit] == 0).all()


def test_noisy_distances_are_fitted_over_a_larger_window():
    """A plane with noise of 3 % of the distance: a window of 7 pixels is wrong by 46 degrees."""
    viewdirs = camera_rays(60)
    normal = torch.tensor([0.6, 0.0, 0.8])
    exact = -4 / (viewdirs @ normal)
    noise = 0.03 * exact * torch.randn(60, 60)
    normals = surface_normals(exact + noise, viewdirs, torch.ones(60, 60))
    assert degrees_between(normals, normal).mean() < 15


def test_normals_keep_the_edge_between_two_surfaces():
    viewdirs = camera_rays()
    left = torch.arange(40) < 20
    slanted = torch.nn.functional.normalize(torch.tensor([0.8, 0.0, 0.6]), dim=0)
    # A slanted plane, and far behind it an upright one.
    distance = torch.where(left, -3 / (viewdirs @ slanted), -6 / viewdirs[..., 2])
    normals = surface_normals(distance, viewdirs, torch.ones_like(distance))
    assert degrees_between(normals[:, :20], slanted).max() < 1
    assert degrees_between(normals[:, 20:], torch.tensor([0.0, 0.0, 1.0])).max() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_normals_of_tiny_images_face_the_camera(size):
    viewdirs = camera_rays(60)[: size[0], : size[1]]
    normals = surface_normals(torch.full(size, 2.0), viewdirs, torch.ones(size))
    assert torch.isfinite(normals).all()
    assert degrees_between(normals, -viewdirs).max() < 25


@pytest.mark.parametrize("flags", [["--ndc"], ["--no-ndc"]])
def test_distances_are_in_world_units_also_in_ndc(flags, tmp_path):
    write_llff(tmp_path / "scene")
    config = get_config(["--scene", str(tmp_path / "scene"), "--dataset_name", "llff", *flags])
    dataset = load_dataset(config, "test")
    rays = dataset.image(0).rays
    pose = dataset.cameras.camtoworlds[0]
    if config.ndc:
        # An NDC ray at t is the world point at z = -near / (1 - t).
        t = torch.full(rays.shape, 0.75)
        depth = 1 / (1 - 0.75)
        reach = (-depth - pose[2, 3]) / rays.viewdirs[..., 2]
    else:
        t = torch.full(rays.shape, 3.0)
        reach = 3.0 * rays.directions.norm(dim=-1)
    distance = world_distance(dataset.cameras, rays, t)
    torch.testing.assert_close(distance, reach, rtol=1e-4, atol=1e-4)
