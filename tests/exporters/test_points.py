"""Surface points of analytic scenes, read back by trimesh."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from config import default_config
from datasets import load_dataset
from exporters.points import SurfacePoints, ply_content, surface_points
from rendering import Renderer
from runtime.errors import UserError
from tests.analytic import AnalyticModel, ball
from tests.scenes import write_blender

CENTRE, RADIUS = np.array([0.2, -0.1, 0.15]), 0.7


def by_side(points):
    """Red where x > 0.2, blue elsewhere."""
    red, blue = points.new_tensor((0.9, 0.1, 0.1)), points.new_tensor((0.1, 0.2, 0.8))
    return torch.where(points[..., :1] > 0.2, red, blue)


@pytest.fixture
def scene(tmp_path):
    write_blender(tmp_path / "scene", num_views=6, size=(48, 40))
    config = default_config(dataset_name="blender", scene=str(tmp_path / "scene"), near=2.0,
                            far=6.0)
    return load_dataset(config, "train").scene


def test_points_of_a_ball_lie_on_it_with_its_normals_and_colours(scene):
    renderer = Renderer(AnalyticModel(ball(CENTRE, RADIUS), by_side))
    points = surface_points(renderer, scene, 3000, chunk=2048)
    read = trimesh.load(io.BytesIO(ply_content(points, scene.world_to_scene)), file_type="ply")
    assert 300 < len(read.vertices) < 3000
    offset = np.asarray(read.vertices) - CENTRE
    radii = np.linalg.norm(offset, axis=1)
    assert np.abs(radii - RADIUS).max() < 0.05 and np.median(np.abs(radii - RADIUS)) < 0.01
    normals = points.normals.numpy()
    outward = (normals * (points.positions.numpy() - CENTRE)).sum(-1) / radii
    assert np.median(outward) > 0.97
    red = np.asarray(read.visual.vertex_colors if hasattr(read, "visual") else read.colors)
    is_right = offset[:, 0] > 0.03
    assert (red[is_right, 0] > 200).all() and (red[offset[:, 0] < -0.03, 2] > 180).all()


def test_the_sky_has_no_points(scene):
    renderer = Renderer(AnalyticModel(ball(CENTRE, RADIUS), by_side))
    cameras = scene.cameras
    # Rays end at t = 3.6, and the limit is 0.99 of the way from 2: nearer sides of the ball remain.
    near_ends = replace(scene, cameras=replace(cameras, far=torch.full_like(cameras.near, 3.6)))
    everything = surface_points(renderer, scene, 3000, chunk=2048).positions
    nearer = surface_points(renderer, near_ends, 3000, chunk=2048).positions
    assert 0 < len(nearer) < len(everything)
    depths = [((nearer - pose[:, 3]) * -pose[:, 2]).sum(-1) for pose in cameras.camtoworlds]
    assert torch.stack(depths).amin(dim=0).max() < 2 + 0.99 * 1.6 + 0.01


def test_points_far_from_the_origin_are_written_as_doubles():
    positions = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    points = SurfacePoints(positions, torch.nn.functional.normalize(positions, dim=-1), positions)
    # The scene's x is the files' y at half the size, so its y is the files' -x.
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    shift = np.array([600_000.0, 5_000_000.0, 300.0])
    world_to_scene = torch.eye(4, dtype=torch.float64)
    world_to_scene[:3, :3] = torch.from_numpy(0.5 * turn)
    world_to_scene[:3, 3] = torch.from_numpy(-0.5 * turn @ shift)
    content = ply_content(points, world_to_scene)
    read = trimesh.load(io.BytesIO(content), file_type="ply")
    expected = 2 * positions.double().numpy() @ turn
    np.testing.assert_allclose(np.asarray(read.vertices) - shift, expected, atol=1e-8)
    rows = read.metadata["_ply_raw"]["vertex"]["data"]
    normals = np.stack([rows[name] for name in ("nx", "ny", "nz")], axis=-1)
    np.testing.assert_allclose(normals, points.normals.double().numpy() @ turn, atol=1e-6)
    assert b"property double x" in content and b"property float nx" in content


def test_an_empty_scene_has_no_points(scene):
    renderer = Renderer(AnalyticModel(ball((100.0, 0.0, 0.0), 0.1), by_side))
    with pytest.raises(UserError, match="no ray of the training views hits a surface"):
        surface_points(renderer, scene, 100, chunk=2048)
