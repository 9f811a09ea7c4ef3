"""Rays of pixels that show known points."""

from dataclasses import replace

import pytest
import torch

from coord import from_ndc
from ray_utils import pixels_to_rays, points_to_pixels
from sparse.supervision import point_rays
from structures import Scene, SparsePoints
from tests.sparse.textured import corner_scene


def scene_of(cameras, points):
    ends = cameras.sizes.prod(dim=-1).cumsum(0)
    return Scene(pixels=None, offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
                 cameras=cameras, names=tuple(map(str, range(len(cameras)))), background=0.0,
                 world_to_scene=torch.eye(4), box=torch.zeros(2, 3), points=points)


def seen_points(cameras, positions, errors=None):
    count = len(cameras)
    image_idx = torch.arange(count).repeat_interleave(len(positions))
    point_idx = torch.arange(len(positions)).repeat(count)
    pixels, _ = points_to_pixels(cameras, image_idx, positions[point_idx])
    errors = torch.zeros(len(positions)) if errors is None else errors
    return SparsePoints(positions=positions, errors=errors, image_idx=image_idx, pixels=pixels,
                        point_idx=point_idx)


def cameras_of(ndc):
    if not ndc:
        return corner_scene(3, sizes=((160, 120), (90, 140)))[0]
    poses = torch.eye(4)[:3].repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([-0.2, 0.0, 0.3])
    pixtocams = torch.linalg.inv(torch.tensor([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]]))
    cameras = corner_scene(3, sizes=((160, 120),))[0]
    return replace(cameras, camtoworlds=poses, pixtocams=pixtocams.repeat(3, 1, 1), near=0.0,
                   far=1.0, ndc=(150.0, 160, 120))


@pytest.mark.parametrize("ndc", [False, True])
def test_the_point_lies_on_its_ray_at_its_distance(ndc):
    cameras = cameras_of(ndc)
    positions = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    positions -= torch.tensor([0.2, 0.2, 4.0]) if ndc else 0.0
    points = seen_points(cameras, positions)
    scene = scene_of(cameras, points)
    rays = point_rays(scene)
    assert len(rays) == 30 and (rays.weight == 1).all()
    cam_idx = torch.searchsorted(scene.offsets, rays.index, right=True) - 1
    within, width = rays.index - scene.offsets[cam_idx], cameras.sizes[cam_idx, 0]
    through = pixels_to_rays(cameras, cam_idx, within % width, within // width)
    places = through.origins + rays.t[:, None] * through.directions
    if ndc:
        places = from_ndc(places, *cameras.ndc)
    # A pixel's centre is up to 0.7 pixels from the point.
    off = (places - positions[points.point_idx]).norm(dim=-1)
    assert off.max() < 0.75 * 4.5 / 150 * (1.5 if ndc else 1)


def test_points_out_of_range_or_image_are_left_out_and_errors_count_less():
    cameras = cameras_of(False)
    positions = torch.tensor([[0.0, 0.0, 0.2], [0.1, 0.1, 0.2]])
    points = seen_points(cameras, positions, torch.tensor([0.0, 1.0]))
    rays = point_rays(scene_of(cameras, points))
    assert rays.weight.tolist() == pytest.approx([1, 0.606531] * 3, rel=1e-5)
    near = replace(cameras, far=1.0)
    assert point_rays(scene_of(near, points)) is None
    outside = replace(points, pixels=points.pixels - 1000)
    assert point_rays(scene_of(cameras, outside)) is None
    elsewhere = replace(points, pixels=points.pixels.roll(1, dims=0))
    assert point_rays(scene_of(cameras, elsewhere)) is None
    assert point_rays(scene_of(cameras, None)) is None


def test_the_last_pixels_of_a_batch_are_replaced():
    cameras = cameras_of(False)
    points = seen_points(cameras, torch.tensor([[0.0, 0.0, 0.2], [0.1, 0.1, 0.2]]),
                         torch.tensor([0.0, 1.0]))
    rays = point_rays(scene_of(cameras, points))
    pixels = torch.arange(8)
    index, distance, weight = rays.replace_last(pixels, 5, torch.Generator().manual_seed(3))
    assert index[:3].tolist() == [0, 1, 2] and (distance[:3] == 0).all()
    assert weight.shape == distance.shape == (8, 1) and (weight[:3] == 0).all()
    assert float(weight.sum()) == pytest.approx(1)
    known = {int(i): (float(t), float(w)) for i, t, w in
             zip(rays.index, rays.t, rays.weight, strict=True)}
    for i, t, w in zip(index[3:], distance[3:, 0], weight[3:, 0], strict=True):
        assert known[int(i)][0] == float(t)
        assert float(w / weight.max()) == pytest.approx(known[int(i)][1] / max(
            known[int(k)][1] for k in index[3:]))
    again = rays.replace_last(pixels, 5, torch.Generator().manual_seed(3))
    assert torch.equal(index, again[0])
    assert len(rays.replace_last(pixels[:2], 5)[0]) == 2
