"""Depth and normals of rendered images, against surfaces with known geometry."""

import logging

import pytest
import torch

import rendering
import train
from checkpoint import load_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from image_utils import psnr
from model import build_model
from procedural import scene as demo
from rendering import make_renderer, surface_normals, world_distance
from tests.scenes import open_scene, write_blender, write_llff


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


# The fast path.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of hash grids on small images of the demo scene, its test split, and its renderer."""
    folder = tmp_path_factory.mktemp("fast")
    demo.write_blender(folder / "demo", size=50)
    train.main(["--preset", "laptop", "--model", "zipnerf", "--scene", str(folder / "demo"),
                "--device", "cpu", "--log_dir", str(folder), "--exp_name", "run", "--max_steps",
                "300", "--batch_size", "512", "--grid_finest", "64", "--grid_log2_size", "13",
                "--eval_every", "0", "--no-final_eval"])
    run = load_checkpoint(folder / "run", "cpu")
    renderer = make_renderer(run.model, run.scene["train"])
    return run, load_dataset(run.config, "test", "cpu"), renderer


def test_fast_images_equal_exact_ones_to_forty_decibels(trained):
    run, test, renderer = trained
    view = test.image(0)
    exact = make_renderer(run.model, run.scene["train"], exact=True).render(view.rays)
    fast = renderer.render(view.rays)
    assert psnr(fast.rgb, exact.rgb) > 40
    assert psnr(fast.rgb, view.rgb) > psnr(exact.rgb, view.rgb) - 0.05
    assert psnr(fast.acc, exact.acc) > 35
    solid = (exact.acc > 0.9) & (fast.acc > 0.9)
    assert solid.float().mean() > 0.1
    for name in ("distance_median", "distance_mean"):
        error = (getattr(fast, name) - getattr(exact, name)).abs()
        assert error[solid].median() < 0.01 and error[exact.acc < 0.01].median() == 0
    normals = [surface_normals(output.distance_median, view.rays.viewdirs, output.acc)
               for output in (fast, exact)]
    assert degrees_between(*normals)[solid].median() < 3


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_fast_path_takes_any_batch_shape(shape, trained):
    _, test, renderer = trained
    rays = test.image(0).rays.flatten()
    rays = rays[:1].map(lambda x: x[0].expand(*shape, *x.shape[1:]))
    output = renderer.render(rays, chunk=4)
    assert output.rgb.shape == (*shape, 3) and output.distance_median.shape == shape


def test_few_rays_and_other_normals_take_the_exact_path(trained):
    run, test, renderer = trained
    rays = test.image(0).rays[:2]
    assert make_renderer(run.model, run.scene["train"], num_rays=100).marcher is None
    output = renderer.render(rays, normals_from="density")
    expected = rendering.render_image(run.model, rays, normals_from="density")
    assert torch.equal(output.rgb, expected.rgb) and torch.equal(output.normals, expected.normals)


@pytest.mark.parametrize("flags,reason", [
    ({"model": "mipnerf"}, None), ({"model": "zipnerf", "num_multisamples": 6}, "multisample"),
    ({"model": "zipnerf", "num_multisamples": 1, "without_numba": True}, "numba is missing"),
    ({"model": "nerv"}, "NeRV")])
def test_models_that_cannot_be_marched_take_the_exact_path(flags, reason, tmp_path, caplog,
                                                           monkeypatch):
    if flags.pop("without_numba", False):
        monkeypatch.setattr(rendering.hash_grid, "has_numba", lambda: False)
    write_blender(tmp_path / "scene", size=(4, 3))
    scene = open_scene(tmp_path / "scene", "blender").scene
    model = build_model(default_config(preset="debug", **flags), box=scene.box).eval()
    with caplog.at_level(logging.INFO):
        renderer = make_renderer(model, scene)
    assert renderer.marcher is None
    assert (reason or "") in caplog.text and (reason is not None or not caplog.text)
