"""Pixels to rays, rays to Gaussians, samples to pixels: against OpenCV, Monte Carlo, slow twins."""

import dataclasses
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import scipy.integrate
import torch

import coord
import ray_utils
from structures import concatenate, stack

EPS = torch.finfo(torch.float32).eps
DOUBLE = torch.float64


def random_rotation():
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def random_tdist(*batch, bins=8, dtype=DOUBLE):
    return (2 + 4 * torch.rand(*batch, bins + 1, dtype=dtype)).sort(dim=-1).values


# Records.


def make_rays(*batch):
    vectors, numbers = torch.randn(*batch, 3), torch.rand(*batch, 1)
    return ray_utils.Rays(
        origins=vectors, directions=vectors + 1, viewdirs=vectors, radii=numbers, near=numbers,
        far=numbers + 4, lossmult=numbers + 1, cam_idx=numbers.long(),
    )


def make_output(*batch, bins=5, **changes):
    per_ray, fenceposts = torch.rand(batch), torch.rand(*batch, bins + 1)
    return ray_utils.RenderOutput(**dict(
        rgb=torch.rand(*batch, 3), acc=per_ray, distance_mean=per_ray, distance_median=per_ray,
        sdist=fenceposts, tdist=fenceposts, weights=torch.rand(*batch, bins),
        extras={"normals": torch.rand(*batch, 3)}, visibility_error=torch.rand(batch),
    ) | changes)


def test_records_are_frozen():
    for record in (make_rays(2), make_output(2), make_cameras()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.rgb = None


def test_map_applies_to_every_tensor():
    batch = ray_utils.Batch(rays=make_rays(4), rgb=torch.rand(4, 3))
    doubled = batch.map(lambda x: 2 * x)
    torch.testing.assert_close(doubled.rays.origins, 2 * batch.rays.origins)
    torch.testing.assert_close(doubled.rgb, 2 * batch.rgb)
    assert doubled.mask is None
    output = make_output(4)
    negated = output.map(torch.neg)
    torch.testing.assert_close(negated.extras["normals"], -output.extras["normals"])
    torch.testing.assert_close(negated.visibility_error, -output.visibility_error)


def test_to_moves_every_tensor():
    moved = ray_utils.Batch(rays=make_rays(2), rgb=torch.rand(2, 3)).to("meta")
    assert moved.rgb.is_meta and moved.rays.origins.is_meta and moved.rays.cam_idx.is_meta


def test_slices_and_concatenation_are_inverse():
    rays, output = make_rays(7), make_output(7)
    assert len(rays[2:5]) == 3
    joined = concatenate([rays[:3], rays[3:7]])
    for name in ("origins", "directions", "cam_idx"):
        torch.testing.assert_close(getattr(joined, name), getattr(rays, name))
    joined = concatenate([output[:3], output[3:3], output[3:]])
    torch.testing.assert_close(joined.weights, output.weights)
    torch.testing.assert_close(joined.extras["normals"], output.extras["normals"])
    torch.testing.assert_close(joined.visibility_error, output.visibility_error)


def test_stacking_adds_an_axis_to_every_tensor():
    outputs = [make_output(3), make_output(3, visibility_error=None)]
    stacked = stack([output.map(lambda x: x) for output in (outputs[0], outputs[0])])
    assert stacked.extras["normals"].shape == (2, 3, 3)
    torch.testing.assert_close(stacked[1].weights, outputs[0].weights)
    batch = ray_utils.Batch(rays=make_rays(5), rgb=torch.rand(5, 3))
    torch.testing.assert_close(stack([batch, batch])[0].rays.far, batch.rays.far)
    assert stack([outputs[1]]).visibility_error is None and stack([batch]).mask is None


def test_concatenation_joins_records_inside_records():
    batch = ray_utils.Batch(rays=make_rays(5), rgb=torch.rand(5, 3))
    joined = concatenate([batch[:2], batch[2:]])
    torch.testing.assert_close(joined.rays.directions, batch.rays.directions)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_rays_flatten_to_one_batch_axis(batch):
    rays = make_rays(*batch)
    flat = rays.flatten()
    assert rays.shape == batch and flat.shape == (math.prod(batch),)
    torch.testing.assert_close(flat.far.flatten(), rays.far.flatten())


@pytest.mark.parametrize("size, parts", [(1, 7), (3, 3), (7, 1), (100, 1)])
def test_split_batches_keep_the_total_weight(size, parts):
    mask = torch.tensor([1.0, 0, 1, 1, 0, 0, 1])[:, None]
    batch = ray_utils.Batch(rays=make_rays(7), rgb=torch.rand(7, 3), mask=mask)
    pieces = batch.split(size)
    assert len(pieces) == parts
    # Only pixels of the mask count.
    total = batch.rays.lossmult[mask > 0].sum().item()
    assert all(piece.lossmult_sum.item() == pytest.approx(total) for piece in pieces)
    torch.testing.assert_close(torch.cat([piece.rgb for piece in pieces]), batch.rgb)
    torch.testing.assert_close(torch.cat([piece.rays.far for piece in pieces]), batch.rays.far)
    assert [len(piece.mask) for piece in pieces] == [len(piece.rays) for piece in pieces]


def test_split_keeps_a_given_total_weight():
    batch = ray_utils.Batch(rays=make_rays(4), rgb=torch.rand(4, 3),
                            lossmult_sum=torch.tensor(100.0))
    assert [piece.lossmult_sum.item() for piece in batch.split(3)] == [100, 100]


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_render_outputs_accept_any_batch_shape(batch):
    make_output(*batch)
    make_output(*batch, sdist=None, tdist=None, weights=None)


@pytest.mark.parametrize("field, shape", [
    ("rgb", (4, 1)), ("acc", (4, 1)), ("acc", (1,)), ("distance_mean", (4, 1)),
    ("distance_median", (4, 5)), ("tdist", (4, 5)), ("sdist", (4, 5)), ("sdist", (1, 6)),
    ("weights", (4, 6)), ("weights", (4, 4)), ("weights", (9, 5)), ("weights", (1, 5)),
    ("visibility_error", (4, 1)), ("normals", (4, 1)),
])
def test_render_outputs_of_wrong_shape_raise(field, shape):
    with pytest.raises(AssertionError):
        make_output(4, **{field: torch.zeros(shape)})


# From pixels to rays.

WIDTH, HEIGHT = 40, 30
INTRINSICS = np.array([[37.0, 0.0, 19.0], [0.0, 52.0, 16.0], [0.0, 0.0, 1.0]])
LENS = dict(k1=0.08, k2=-0.05, k3=0.02, k4=-0.004, p1=0.004, p2=-0.007)


def pixtocam_opengl(intrinsics):
    return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=DOUBLE)) @ torch.linalg.inv(
        torch.as_tensor(intrinsics, dtype=DOUBLE))


def make_cameras(camtoworlds=None, dtype=DOUBLE, **changes):
    """One pinhole camera with pixels that are not square, at the world's origin by default."""
    if camtoworlds is None:
        camtoworlds = torch.eye(4)[None, :3]
    count = len(camtoworlds)
    return ray_utils.Cameras(**dict(
        camtoworlds=camtoworlds.to(dtype),
        pixtocams=pixtocam_opengl(INTRINSICS).to(dtype).expand(count, 3, 3),
        sizes=torch.tensor([[WIDTH, HEIGHT]]).expand(count, 2), near=2.0, far=6.0,
    ) | changes)


def lens(**coefficients):
    """Distortion coefficients in the order of `Cameras`."""
    return torch.tensor([[coefficients.get(k, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2")]],
                        dtype=DOUBLE)


def random_pose():
    return torch.cat([random_rotation(), torch.randn(3, 1, dtype=DOUBLE)], dim=1)


def all_pixels(width=WIDTH, height=HEIGHT):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.zeros_like(x), x, y


def pixel_rays(cameras, x, y):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return ray_utils.pixels_to_rays(cameras, torch.zeros_like(x), x, y)


def world_to_opencv(pose):
    """OpenCV's rotation vector and translation of an OpenGL camera-to-world pose."""
    rotation = np.diag([1.0, -1.0, -1.0]) @ pose[:, :3].numpy().T
    return cv2.Rodrigues(rotation)[0], -rotation @ pose[:, 3].numpy()


def points_on(rays):
    """A point on each ray, at random t."""
    t = 1 + 4 * torch.rand_like(rays.near)
    return (rays.origins + t * rays.directions).numpy()


def assert_projects_to_centres(projected, x, y, atol=1e-8):
    expected = torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5
    np.testing.assert_allclose(projected.reshape(-1, 2), expected.numpy(), atol=atol)


def test_a_ray_worked_out_by_hand():
    pixtocam = torch.tensor([[[0.1, 0, -0.5], [0, -0.2, 0.8], [0, 0, -1]]])
    # Turned a quarter about y: the camera looks along -x, and its right is the world's -z.
    pose = torch.tensor([[[0.0, 0, 1, 7], [0, 1, 0, 8], [-1, 0, 0, 9]]])
    rays = pixel_rays(make_cameras(pose, torch.float32, pixtocams=pixtocam, near=1.5,
                                   lossmult=16.0), [2], [6])
    # (2.5, 6.5) is -0.25 to the right and -0.5 up.
    torch.testing.assert_close(rays.origins, torch.tensor([[7.0, 8, 9]]))
    torch.testing.assert_close(rays.directions, torch.tensor([[-1.0, -0.5, 0.25]]))
    torch.testing.assert_close(rays.viewdirs, torch.tensor([[-1.0, -0.5, 0.25]]) / 1.3125**0.5)
    assert rays.radii.item() == pytest.approx(0.15 * 2 / 12**0.5)
    assert (rays.near.item(), rays.far.item(), rays.lossmult.item()) == (1.5, 6, 16)


def test_directions_of_the_corner_and_centre_pixels():
    intrinsics = [[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]]
    cameras = make_cameras(pixtocams=pixtocam_opengl(intrinsics)[None])
    corner, last = pixel_rays(cameras, [0, WIDTH - 1], [0, HEIGHT - 1]).directions
    assert corner[0] < 0 < corner[1] and corner[2] == -1
    torch.testing.assert_close(last[:2], -corner[:2])
    # Between the four middle pixels lies the optical axis.
    middle = pixel_rays(cameras, [19, 20, 19, 20], [14, 14, 15, 15]).directions.mean(dim=0)
    torch.testing.assert_close(middle, torch.tensor([0.0, 0, -1], dtype=DOUBLE))


def test_view_directions_are_unit_and_parallel():
    rays = ray_utils.pixels_to_rays(make_cameras(random_pose()[None]), *all_pixels())
    torch.testing.assert_close(rays.viewdirs.norm(dim=-1), torch.ones(HEIGHT, WIDTH, dtype=DOUBLE))
    norm = rays.directions.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(rays.viewdirs * norm, rays.directions)


def test_inverse_intrinsics_of_opencv_and_opengl_give_the_same_rays():
    pose = random_pose()[None]
    opencv = torch.linalg.inv(torch.as_tensor(INTRINSICS))[None]
    a = ray_utils.pixels_to_rays(make_cameras(pose), *all_pixels())
    b = ray_utils.pixels_to_rays(make_cameras(pose, pixtocams=opencv), *all_pixels())
    torch.testing.assert_close(a.directions, b.directions)


def test_cameras_keep_their_intrinsics_through_map_and_slices():
    cameras = make_cameras(torch.stack([random_pose(), random_pose()]), near=torch.tensor([1., 2]))
    again = cameras[1:].map(lambda x: x.clone())
    assert len(again) == 1 and again.near.tolist() == [2] and again.far.tolist() == [6]
    torch.testing.assert_close(again.pixtocams, cameras.pixtocams[1:], atol=0, rtol=0)


def test_points_on_rays_project_back_to_their_pixels():
    pose, (index, x, y) = random_pose(), all_pixels()
    rays = ray_utils.pixels_to_rays(make_cameras(pose[None]), index, x, y)
    camera = (points_on(rays).reshape(-1, 3) - pose[:, 3].numpy()) @ pose[:, :3].numpy()
    image = camera @ np.diag([1.0, -1.0, -1.0]) @ INTRINSICS.T
    assert_projects_to_centres(image[:, :2] / image[:, 2:], x, y)


@pytest.mark.parametrize("names", [("k1",), ("k1", "k2", "k3"), ("p1", "p2"),
                                   ("k1", "k2", "k3", "p1", "p2")])
def test_distorted_rays_project_back_by_opencv(names):
    coefficients = {name: LENS[name] for name in names}
    pose, (index, x, y) = random_pose(), all_pixels()
    cameras = make_cameras(pose[None], distortion=lens(**coefficients))
    points = points_on(ray_utils.pixels_to_rays(cameras, index, x, y)).reshape(-1, 3)
    order = np.array([coefficients.get(k, 0.0) for k in ("k1", "k2", "p1", "p2", "k3")])
    projected, _ = cv2.projectPoints(points, *world_to_opencv(pose), INTRINSICS, order)
    assert_projects_to_centres(projected, x, y)


@pytest.mark.parametrize("names", [(), ("k1",), ("k1", "k2", "k3", "k4")])
def test_fisheye_rays_project_back_by_opencv(names):
    coefficients = {name: LENS[name] for name in names}
    pose, (index, x, y) = random_pose(), all_pixels()
    cameras = make_cameras(pose[None], fisheye=torch.tensor([True]),
                           distortion=lens(**coefficients) if names else None)
    rays = ray_utils.pixels_to_rays(cameras, index, x, y)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(HEIGHT, WIDTH).double())
    order = np.array([coefficients.get(k, 0.0) for k in ("k1", "k2", "k3", "k4")])
    projected, _ = cv2.fisheye.projectPoints(points_on(rays).reshape(1, -1, 3),
                                             *world_to_opencv(pose), INTRINSICS, order)
    assert_projects_to_centres(projected, x, y)


def test_fourth_radial_coefficient_is_that_of_r_to_the_eighth():
    ideal = 0.6 * torch.randn(50, 2, dtype=DOUBLE).clamp(-1, 1)
    radius_squared = (ideal**2).sum(dim=-1, keepdim=True)
    got = ray_utils.undistort(ideal * (1 + 0.05 * radius_squared**4), lens(k4=0.05))
    torch.testing.assert_close(got, ideal)


def test_undistortion_converges_in_float32_as_far_as_float64():
    distorted = 0.5 * torch.randn(200, 2).clamp(-1, 1)
    exact = ray_utils.undistort(distorted.double(), lens(**LENS))
    got = ray_utils.undistort(distorted, lens(**LENS).float())
    torch.testing.assert_close(got.double(), exact, atol=16 * EPS, rtol=0)


def test_undistortion_converges_as_fast_as_newtons_method(monkeypatch):
    distorted = 0.5 * torch.randn(200, 2, dtype=DOUBLE).clamp(-1, 1)
    results = []
    for steps in (1, 2, 3, 30):
        monkeypatch.setattr(ray_utils, "NEWTON_STEPS", steps)
        results.append(ray_utils.undistort(distorted, lens(**LENS)))
    one, two, three = ((x - results[-1]).abs().max() for x in results[:3])
    # Each error is about the square of the one before.
    assert two < 3 * one**2 and three < 3 * two**2 + 1e-15


def test_fisheye_and_pinhole_cameras_mix_in_one_set():
    distortion = lens(k1=0.05).expand(2, 6)
    both = make_cameras(torch.eye(4)[None, :3].expand(2, 3, 4), distortion=distortion,
                        fisheye=torch.tensor([False, True]))
    x = torch.tensor([3, 3])
    mixed = ray_utils.pixels_to_rays(both, torch.tensor([0, 1]), x, x).directions
    pinhole = pixel_rays(make_cameras(distortion=distortion[:1]), [3], [3]).directions[0]
    curved = pixel_rays(make_cameras(distortion=distortion[:1], fisheye=torch.tensor([True])),
                        [3], [3]).directions[0]
    torch.testing.assert_close(mixed, torch.stack([pinhole, curved]))
    assert not torch.allclose(pinhole, curved)


def test_the_centre_of_a_fisheye_is_the_optical_axis():
    pixtocam = torch.tensor([[[0.1, 0, -0.05], [0, -0.1, 0.05], [0, 0, -1]]], dtype=DOUBLE)
    cameras = make_cameras(pixtocams=pixtocam, fisheye=torch.tensor([True]))
    assert pixel_rays(cameras, [0], [0]).directions.tolist() == [[0, 0, -1]]


def test_pinhole_radii_match_the_pixel_variance_also_at_the_border():
    rays = ray_utils.pixels_to_rays(make_cameras(random_pose()[None]), *all_pixels())
    # A disc of radius r has variance r^2 / 4 along an axis, a pixel of width w has w^2 / 12.
    mean_width = (1 / INTRINSICS[0, 0] + 1 / INTRINSICS[1, 1]) / 2
    expected = torch.full_like(rays.radii, 2 / 12**0.5 * mean_width)
    torch.testing.assert_close(rays.radii, expected)


def test_ndc_rays_are_world_rays_in_ndc_with_radii_between_origins():
    pose = torch.eye(4)[None, :3].double()
    pose[0, :, 3] = torch.tensor([0.1, -0.2, 0.3])
    ndc = (45.0, WIDTH, HEIGHT)
    world = ray_utils.pixels_to_rays(make_cameras(pose), *all_pixels())
    rays = ray_utils.pixels_to_rays(make_cameras(pose, ndc=ndc), *all_pixels())
    torch.testing.assert_close(rays.viewdirs, world.viewdirs)
    points = world.origins + 1.3 * world.directions
    start = coord.points_to_ndc(points, *ndc) - rays.origins
    torch.testing.assert_close(torch.linalg.cross(start, rays.directions),
                               torch.zeros_like(start), atol=1e-12, rtol=0)
    right = (rays.origins[:-1, 1:] - rays.origins[:-1, :-1]).norm(dim=-1)
    down = (rays.origins[1:, :-1] - rays.origins[:-1, :-1]).norm(dim=-1)
    torch.testing.assert_close(rays.radii[:-1, :-1, 0], (right + down) / 2 * 2 / 12**0.5)


def test_radii_do_not_depend_on_the_image_size():
    # The last pixels of a small image are inner pixels of a larger one.
    for ndc in (None, (45.0, WIDTH, HEIGHT)):
        cameras = make_cameras(distortion=lens(**LENS), ndc=ndc)
        large = ray_utils.pixels_to_rays(cameras, *all_pixels(9, 7))
        small = ray_utils.pixels_to_rays(cameras, *all_pixels(5, 4))
        torch.testing.assert_close(small.radii, large.radii[:4, :5])


def test_rays_move_with_their_camera():
    rotation, pose = random_rotation(), random_pose()
    moved = torch.cat([rotation @ pose[:, :3], pose[:, 3:] + 1], dim=1)
    a = ray_utils.pixels_to_rays(make_cameras(pose[None]), *all_pixels())
    b = ray_utils.pixels_to_rays(make_cameras(moved[None]), *all_pixels())
    torch.testing.assert_close(b.directions, a.directions @ rotation.T)
    torch.testing.assert_close(b.viewdirs, a.viewdirs @ rotation.T)
    torch.testing.assert_close(b.origins, a.origins + 1)
    torch.testing.assert_close(b.radii, a.radii)


def test_each_ray_uses_its_own_camera():
    poses = torch.stack([random_pose() for _ in range(3)])
    cameras = make_cameras(poses, near=torch.tensor([1.0, 2, 3]),
                           lossmult=torch.tensor([1.0, 4, 16]))
    index = torch.tensor([[2, 0], [1, 2]])
    rays = ray_utils.pixels_to_rays(cameras, index, index * 3, index + 1)
    torch.testing.assert_close(rays.origins, poses[index][..., 3])
    assert rays.near[..., 0].tolist() == [[3, 1], [2, 3]]
    assert rays.lossmult[..., 0].tolist() == [[16, 1], [4, 16]]
    assert rays.cam_idx[..., 0].tolist() == index.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_rays_have_the_shape_of_their_pixels(batch, dtype):
    x = torch.zeros(batch, dtype=torch.long)
    cameras = make_cameras(dtype=dtype, distortion=lens(k1=0.1).to(dtype),
                           fisheye=torch.tensor([True]))
    rays = ray_utils.pixels_to_rays(cameras, x, x, x)
    assert rays.lights is None and rays.image_idx is None
    for field in dataclasses.fields(rays)[:-2]:
        value = getattr(rays, field.name)
        wide = field.name in ("origins", "directions", "viewdirs")
        assert value.shape == (*batch, 3 if wide else 1)
        assert value.dtype == (torch.long if field.name == "cam_idx" else dtype)


def test_pixels_of_different_shapes_raise():
    with pytest.raises(AssertionError):
        ray_utils.pixels_to_rays(make_cameras(), torch.zeros(1).long(), torch.arange(3),
                                 torch.arange(3))


def test_blender_rays_equal_the_official_code(golden):
    focal = golden("rays_blender.focal").item()
    pixtocam = torch.tensor([[1 / focal, 0, -5 / focal], [0, -1 / focal, 4 / focal], [0, 0, -1]])
    cameras = make_cameras(golden("rays_blender.camtoworlds")[:, :3], torch.float32,
                           pixtocams=pixtocam.expand(2, 3, 3))
    index, y, x = torch.meshgrid(torch.arange(2), torch.arange(0, 8, 3), torch.arange(0, 10, 3),
                                 indexing="ij")
    rays = ray_utils.pixels_to_rays(cameras, index, x, y)
    for name in ("origins", "directions", "viewdirs", "radii"):
        # A few roundings of numbers below 1; a radius is a difference of such.
        torch.testing.assert_close(getattr(rays, name), golden(f"rays_blender.factor0_{name}"),
                                   atol=4 * EPS, rtol=0)


def test_llff_rays_equal_the_official_code(golden):
    focal = golden("rays_llff.focal").item()
    pixtocam = torch.tensor([[1 / focal, 0, -6 / focal], [0, -1 / focal, 4.5 / focal], [0, 0, -1]])
    cameras = make_cameras(golden("rays_llff.test_camtoworlds"), torch.float32,
                           pixtocams=pixtocam.expand(2, 3, 3), ndc=(focal, 12, 9))
    index, y, x = torch.meshgrid(torch.arange(2), torch.arange(0, 8, 3), torch.arange(0, 11, 2),
                                 indexing="ij")
    rays = ray_utils.pixels_to_rays(cameras, index, x, y)
    for name in ("origins", "directions", "radii"):
        # Quotients of numbers that are a few eps off, some 2 in size, times 2 focal / height = 3.
        torch.testing.assert_close(getattr(rays, name), golden(f"rays_llff.test_{name}"),
                                   atol=16 * EPS, rtol=0)
    # The official view directions are not unit.
    unit = torch.nn.functional.normalize(golden("rays_llff.test_viewdirs"), dim=-1)
    torch.testing.assert_close(rays.viewdirs, unit, atol=4 * EPS, rtol=0)


# Coarse and fine samples.


@pytest.mark.parametrize("lindisp", [False, True])
def test_coarse_samples_are_even_from_near_to_far(lindisp):
    near, far = torch.tensor([[0.5], [2.0]]).double(), torch.tensor([[8.0], [6.0]]).double()
    tdist = ray_utils.sample_along_rays(near, far, 10, lindisp=lindisp)
    assert tdist.shape == (2, 11)
    gaps = (1 / tdist if lindisp else tdist).diff(dim=-1)
    torch.testing.assert_close(gaps, gaps[:, :1].expand_as(gaps))
    torch.testing.assert_close(tdist[:, [0, -1]], torch.cat([near, far], dim=-1))


@pytest.mark.parametrize("lindisp", [False, True])
def test_jittered_edges_are_uniform_between_midpoints(lindisp):
    rays, samples = 4000, 8
    near, far = torch.full((rays, 1), 2.0), torch.full((rays, 1), 6.0)
    even = ray_utils.sample_along_rays(near[0], far[0], samples, lindisp=lindisp)
    tdist = ray_utils.sample_along_rays(near, far, samples, torch.rand(rays, samples + 1), lindisp)
    middle = (even[1:] + even[:-1]) / 2
    lower, upper = torch.cat([even[:1], middle]), torch.cat([middle, even[-1:]])
    assert (tdist >= lower).all() and (tdist <= upper).all() and (tdist.diff(dim=-1) >= 0).all()
    deviation = (upper - lower) / math.sqrt(12 * rays)
    assert ((tdist.mean(dim=0) - (lower + upper) / 2).abs() <= 5 * deviation).all()
    torch.testing.assert_close(tdist.var(dim=0), (upper - lower) ** 2 / 12, rtol=0.1, atol=0)


def test_coarse_sample_of_one_interval():
    tdist = ray_utils.sample_along_rays(torch.tensor([2.0]), torch.tensor([6.0]), 1)
    assert tdist.tolist() == [2, 6]


@pytest.mark.parametrize("jittered, lindisp, expected", [
    (False, False, "sample_linear_t"), (False, True, "sample_lindisp_t"),
    (True, False, "sample_linear_rand_t"),
])
def test_coarse_samples_equal_the_official_code(golden, jittered, lindisp, expected):
    jitter = golden("sampling.sample_t_rand") if jittered else None
    tdist = ray_utils.sample_along_rays(golden("sampling.near"), golden("sampling.far"), 16,
                                        jitter, lindisp)
    # Two roundings of numbers up to 6, whose last place is 4 eps.
    torch.testing.assert_close(tdist, golden(f"sampling.{expected}"), atol=8 * EPS, rtol=0)


@pytest.mark.parametrize("jittered", [False, True])
def test_resampling_is_blurring_padding_and_inverting(jittered):
    tdist, weights = random_tdist(4, bins=6), torch.rand(4, 6, dtype=DOUBLE)
    jitter = torch.rand(4, 13, dtype=DOUBLE) if jittered else None
    fine = ray_utils.resample_along_rays(tdist, weights, 12, jitter, resample_padding=0.03)
    for ray in range(4):
        w = weights[ray].tolist()
        padded = [w[0], *w, w[-1]]
        blurred = np.array([(max(a, b) + max(b, c)) / 2 + 0.03 for a, b, c in
                            zip(padded, padded[1:], padded[2:], strict=False)])
        cdf = np.concatenate([[0], np.cumsum(blurred / blurred.sum())])
        u = ((np.arange(13) + jitter[ray].numpy()) / 13 if jittered
             else np.linspace(0, 1, 13))
        np.testing.assert_allclose(fine[ray], np.interp(u, cdf, tdist[ray]), atol=1e-9)


def test_resampled_edges_are_sorted_and_detached():
    tdist = random_tdist(500, bins=32, dtype=torch.float32)
    weights = (torch.rand(500, 32) ** 20).requires_grad_()
    fine = ray_utils.resample_along_rays(tdist, weights, 64, torch.rand(500, 65))
    assert fine.shape == (500, 65) and not fine.requires_grad
    assert (fine.diff(dim=-1) >= 0).all()
    assert (fine >= tdist[:, :1]).all() and (fine <= tdist[:, -1:]).all()


def test_padding_samples_empty_space():
    tdist, spike = torch.linspace(0, 1, 33), torch.zeros(32)
    spike[3] = 1
    padded = ray_utils.resample_along_rays(tdist, spike, 200)
    # Outside the three blurred bins lie 29 of 32 paddings of 0.01.
    fraction = (padded > tdist[5]).float().mean().item()
    assert fraction == pytest.approx(27 * 0.01 / (2 + 0.32), abs=1 / 200)
    bare = ray_utils.resample_along_rays(tdist, spike, 200, resample_padding=0.0)
    assert (bare <= tdist[5]).all()


@pytest.mark.parametrize("kind", ["det", "rand"])
def test_resampling_equals_the_official_code(golden, kind):
    jitter = golden("sampling.pdf_jitter") * 33 if kind == "rand" else None
    fine = ray_utils.resample_along_rays(golden("sampling.bins"), golden("sampling.weights"), 32,
                                         jitter)
    # Each bin has at least the padding's fraction of the mass, so a rounded cdf (8 eps) moves a
    # sample by at most 8 eps times its width over that fraction.
    mass = golden("sampling.weights").sum(dim=-1) * 2 + 0.01 * 32
    widest = golden("sampling.bins").diff(dim=-1).amax(dim=-1)
    tolerance = (8 * EPS * widest * mass / 0.01 + 8 * EPS)[:, None]
    assert ((fine - golden(f"sampling.resample_{kind}_t")).abs() <= tolerance).all()


# Gaussians.

# t0, t1, radius at t = 1, direction.
INTERVALS = [
    (0.0, 1.0, 0.4, (0.0, 0.0, 1.0)),
    (0.5, 0.6, 0.8, (0.3, -0.5, 0.9)),
    (1.0, 3.0, 0.2, (1.5, 0.4, -2.0)),
]
SHAPES = {"cone": ray_utils.conical_frustum_to_gaussian, "cylinder": ray_utils.cylinder_to_gaussian}


def interval_samples(shape, direction, t0, t1, radius, count=100_000):
    """Points spread evenly over a frustum or cylinder whose apex or axis begins at 0."""
    u, v, phi = torch.rand(3, count, dtype=DOUBLE)
    if shape == "cone":
        # A cone's cross-interval grows as t^2.
        t = (t0**3 + u * (t1**3 - t0**3)) ** (1 / 3)
        radius = radius * t
    else:
        t = t0 + u * (t1 - t0)
    # The rows of an orthogonal basis after the ray's own.
    across = torch.linalg.svd(direction[None])[2][1:]
    ring = torch.stack([torch.cos(2 * torch.pi * phi), torch.sin(2 * torch.pi * phi)], dim=-1)
    return t[:, None] * direction + (radius * v.sqrt())[:, None] * (ring @ across)


def single_interval(interval, dtype=DOUBLE):
    t0, t1, radius, direction = interval
    return (torch.tensor(direction, dtype=dtype), torch.tensor([t0], dtype=dtype),
            torch.tensor([t1], dtype=dtype), torch.tensor([radius], dtype=dtype))


def naive_moments(t0, t1, radius):
    """Mean and variance of t, and variance across, of a frustum, in exact fractions.

    These are the integrals as one writes them down; in floating point they would cancel.
    """
    t0, t1, radius = Fraction(t0), Fraction(t1), Fraction(radius)
    volume = t1**3 - t0**3
    mean = Fraction(3, 4) * (t1**4 - t0**4) / volume
    second = Fraction(3, 5) * (t1**5 - t0**5) / volume
    return float(mean), float(second - mean**2), float(radius**2 / 4 * second)


@pytest.mark.parametrize("interval", INTERVALS)
def test_sampled_frustums_lie_inside_and_fill_evenly(interval):
    t0, t1, radius, _ = interval
    direction = single_interval(interval)[0]
    x = interval_samples("cone", direction, t0, t1, radius)
    norm = direction.norm()
    t = x @ direction / norm**2
    # The indicator of mip-NeRF, eq. 5.
    cosine = x @ direction / (norm * x.norm(dim=-1))
    assert ((t >= t0 - 1e-12) & (t <= t1 + 1e-12)).all()
    assert (cosine >= 1 / torch.sqrt(1 + (radius / norm) ** 2) - 1e-12).all()
    middle = (t0 + t1) / 2
    early = (middle**3 - t0**3) / (t1**3 - t0**3)
    inner = (x - t[:, None] * direction).norm(dim=-1) < radius * t / 2
    for inside, expected in ((t < middle, early), (inner, 0.25)):
        sigma = math.sqrt(expected * (1 - expected) / len(x))
        assert abs(inside.double().mean().item() - expected) < 5 * sigma


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_equal_monte_carlo(shape, interval):
    t0, t1, radius, _ = interval
    inputs = single_interval(interval)
    x = interval_samples(shape, inputs[0], t0, t1, radius)
    centred = x - x.mean(dim=0)
    products = centred[:, :, None] * centred[:, None, :]
    means, covs = SHAPES[shape](*inputs, diag=False)
    count = math.sqrt(len(x))
    assert ((means[0] - x.mean(dim=0)).abs() <= 5 * x.std(dim=0) / count + 1e-12).all()
    assert ((covs[0] - products.mean(dim=0)).abs() <= 5 * products.std(dim=0) / count + 1e-12).all()


@pytest.mark.parametrize("interval", INTERVALS)
def test_frustum_moments_equal_the_closed_forms(interval):
    t0, t1, radius, _ = interval
    along_z = (t0, t1, radius, (0.0, 0.0, 1.0))
    means, covs = ray_utils.conical_frustum_to_gaussian(*single_interval(along_z))
    mean, t_var, r_var = naive_moments(t0, t1, radius)
    torch.testing.assert_close(means, torch.tensor([[0, 0, mean]], dtype=DOUBLE))
    torch.testing.assert_close(covs, torch.tensor([[r_var, r_var, t_var]], dtype=DOUBLE))


@pytest.mark.parametrize("thickness", [1e-6, 1e-3, 1e-2, 0.1, 1.0, 4.0])
def test_frustum_moments_in_float32_do_not_cancel(thickness):
    t0 = 2 + 2 * torch.rand(50)
    t1, radius = t0 + thickness, torch.tensor([0.002])
    means, covs = ray_utils.conical_frustum_to_gaussian(torch.tensor([0.0, 0, 1]), t0, t1, radius)
    got = torch.stack([means[:, 2], covs[:, 2], covs[:, 0]], dim=-1).double()
    ends = zip(t0.tolist(), t1.tolist(), strict=True)
    expected = [naive_moments(*pair, radius.item()) for pair in ends]
    # t1 - t0 is exact, so a handful of roundings is all.
    torch.testing.assert_close(got, torch.tensor(expected, dtype=DOUBLE), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_diagonal_covariances_are_the_diagonals_of_full_ones(shape):
    inputs = torch.randn(5, 3), *random_tdist(5, bins=7)[:, :2, None].unbind(1), torch.rand(5, 1)
    inputs = [x.double() for x in inputs]
    diagonal, full = SHAPES[shape](*inputs, diag=True), SHAPES[shape](*inputs, diag=False)
    torch.testing.assert_close(diagonal.means, full.means)
    torch.testing.assert_close(diagonal.covs, full.covs.diagonal(dim1=-2, dim2=-1))
    assert (torch.linalg.eigvalsh(full.covs) > 0).all()


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gaussians_rotate_with_their_ray(shape, interval):
    direction, *rest = single_interval(interval)
    rotation = random_rotation()
    before = SHAPES[shape](direction, *rest, diag=False)
    after = SHAPES[shape](rotation @ direction, *rest, diag=False)
    torch.testing.assert_close(after.means, before.means @ rotation.T)
    torch.testing.assert_close(after.covs, rotation @ before.covs @ rotation.T)


@pytest.mark.parametrize("shape, radius_scale", [("cone", 2.0), ("cylinder", 1.0)])
def test_gaussians_do_not_depend_on_the_length_of_directions(shape, radius_scale):
    direction, t0, t1, radius = single_interval(INTERVALS[2])
    a = SHAPES[shape](direction, t0, t1, radius, diag=False)
    b = SHAPES[shape](2 * direction, t0 / 2, t1 / 2, radius * radius_scale, diag=False)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("diag", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_cast_rays_places_each_interval_at_the_origin(shape, diag):
    tdist, origins = random_tdist(4, bins=5), torch.randn(4, 3, dtype=DOUBLE)
    directions, radii = torch.randn(4, 3, dtype=DOUBLE), torch.rand(4, 1, dtype=DOUBLE)
    means, covs = ray_utils.cast_rays(tdist, origins, directions, radii, shape, diag)
    for i in range(5):
        one = SHAPES[shape](directions, tdist[:, i, None], tdist[:, i + 1, None], radii, diag)
        torch.testing.assert_close(means[:, i], origins + one.means[:, 0])
        torch.testing.assert_close(covs[:, i], one.covs[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_gaussians_keep_batch_axes_and_dtype(batch, shape, dtype):
    tdist, vectors = random_tdist(*batch, bins=1, dtype=dtype), torch.randn(*batch, 3, dtype=dtype)
    for diag, tail in ((True, (3,)), (False, (3, 3))):
        means, covs = ray_utils.cast_rays(tdist, vectors, vectors, tdist[..., :1], shape, diag)
        assert means.shape == (*batch, 1, 3) and covs.shape == (*batch, 1, *tail)
        assert means.dtype == covs.dtype == dtype


@pytest.mark.parametrize("diag", [True, False])
@pytest.mark.parametrize("t0, t1, radius, size", [
    (0, 0, 0, 0), (0, 0, 1e-3, 1), (0, 1e-20, 1e-3, 1), (1e-25, 1e-25, 1e-3, 1), (5, 5, 0, 1),
    (0, 1, 1e-3, 0), (0, 1e9, 1e-3, 1), (2, 2 + 1e-6, 1e-12, 1e-8),
])
def test_frustums_and_gradients_are_finite_at_worst_inputs(t0, t1, radius, size, diag):
    inputs = [torch.full((n,), float(x), requires_grad=True)
              for n, x in ((3, size), (1, t0), (1, t1), (1, radius))]
    means, covs = ray_utils.conical_frustum_to_gaussian(*inputs, diag)
    (means.sum() + covs.sum()).backward()
    assert all(x.isfinite().all() for x in (means, covs, *(x.grad for x in inputs)))
    variances = covs if diag else covs.diagonal(dim1=-2, dim2=-1)
    assert (variances >= 0).all()


@pytest.mark.parametrize("shape, widths", [("cone", [1.0, 0.0, 0.6]), ("cylinder", [0.2] * 3)])
def test_footprints_widen_only_along_cones(shape, widths):
    t = torch.tensor([5.0, 0.0, 3.0], dtype=DOUBLE)
    radii = torch.tensor([0.2], dtype=DOUBLE)
    found = ray_utils.footprint_radius(radii, t, shape)
    torch.testing.assert_close(found, torch.tensor(widths, dtype=DOUBLE))


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_gradients_equal_finite_differences(shape):
    inputs = [x.requires_grad_() for x in single_interval(INTERVALS[2])]
    assert torch.autograd.gradcheck(lambda *x: tuple(SHAPES[shape](*x, diag=False)), inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussians_equal_the_official_code(golden, shape):
    inputs = [golden(f"gaussians.{name}") for name in ("t_vals", "origins", "directions", "radii")]
    for diag, kind in ((True, "diag"), (False, "full")):
        means, covs = ray_utils.cast_rays(*inputs, shape, diag)
        # Means: two roundings of numbers up to 6. Covariances: a few of numbers up to 0.25, where
        # the subtraction in I - d d^T / |d|^2 leaves absolute, not relative, errors.
        torch.testing.assert_close(means, golden(f"gaussians.cast_{shape}_diag_mean"),
                                   atol=8 * EPS, rtol=0)
        torch.testing.assert_close(covs, golden(f"gaussians.cast_{shape}_{kind}_cov"),
                                   atol=EPS / 2, rtol=8 * EPS)


# From samples to pixels.


def random_samples(*batch, bins=8, dtype=DOUBLE):
    """Density, colour, fenceposts and directions of random rays."""
    return (3 * torch.rand(*batch, bins, dtype=dtype), torch.rand(*batch, bins, 3, dtype=dtype),
            random_tdist(*batch, bins=bins, dtype=dtype), torch.randn(*batch, 3, dtype=dtype))


def composite(density, rgb, tdist, directions, bg_rgb=0.0):
    weights = ray_utils.compute_weights(density, tdist, directions)
    return ray_utils.volumetric_rendering(rgb, weights, tdist, bg_rgb)


def slow_composite(density, rgb, tdist, direction, background):
    """One ray in plain Python: march through it, interval by interval."""
    length = math.sqrt(sum(x * x for x in direction))
    passed, colour, weights, moment = 1.0, [0.0] * 3, [], 0.0
    median = tdist[-1]
    for sigma, rgb_i, t0, t1 in zip(density, rgb, tdist[:-1], tdist[1:], strict=True):
        alpha = 1 - math.exp(-sigma * (t1 - t0) * length)
        weights.append(passed * alpha)
        if passed > 0.5 >= passed * (1 - alpha):
            median = t0 + (passed - 0.5) / (passed * alpha) * (t1 - t0)
        colour = [c + weights[-1] * x for c, x in zip(colour, rgb_i, strict=True)]
        moment += weights[-1] * (t0 + t1) / 2
        passed *= 1 - alpha
    colour = [c + passed * b for c, b in zip(colour, background, strict=True)]
    acc = 1 - passed
    return weights, colour, acc, moment / acc, median


def test_compositing_equals_a_slow_twin():
    samples = random_samples(20)
    samples[0][:10] *= 0.05  # Half of the rays are mostly transparent.
    background = torch.rand(20, 3, dtype=DOUBLE)
    weights = ray_utils.compute_weights(samples[0], samples[2], samples[3])
    got = ray_utils.volumetric_rendering(samples[1], weights, samples[2], background)
    passing = 0
    for ray in range(20):
        expected = slow_composite(*(x[ray].tolist() for x in (*samples, background)))
        actual = weights[ray], got.rgb[ray], got.acc[ray], got.distance_mean[ray], \
            got.distance_median[ray]
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, torch.tensor(b, dtype=DOUBLE))
        passing += expected[2] < 0.5
    assert 0 < passing < 20


@pytest.mark.parametrize("sigma", [1e-4, 0.3, 5.0])
def test_a_slab_of_constant_density_has_the_opacity_of_its_length(sigma):
    tdist, direction = random_tdist(4, bins=17), torch.tensor([[1.0, 2.0, -2.0]]).double()
    weights = ray_utils.compute_weights(torch.full((4, 17), sigma).double(), tdist, direction)
    length = 3 * (tdist[:, -1] - tdist[:, 0])
    torch.testing.assert_close(weights.sum(dim=-1), 1 - torch.exp(-sigma * length))


def test_thin_density_keeps_its_opacity_in_float32():
    tdist = torch.linspace(2, 6, 129)
    weights = ray_utils.compute_weights(torch.full((128,), 1e-7), tdist, torch.tensor([0.0, 0, 1]))
    # 1 - exp(-x) would round x = 3e-9 to 0.
    assert weights.sum().item() == pytest.approx(4e-7, rel=1e-5)


def test_splitting_intervals_keeps_pixels():
    density, rgb, tdist, directions = random_samples(6)
    middle = tdist[:, :-1] + 0.3 * tdist.diff(dim=-1)
    split = torch.cat([tdist, middle], dim=-1).sort(dim=-1).values
    whole = composite(density, rgb, tdist, directions, 0.5)
    halves = composite(density.repeat_interleave(2, -1), rgb.repeat_interleave(2, -2), split,
                       directions, 0.5)
    torch.testing.assert_close(halves.rgb, whole.rgb)
    torch.testing.assert_close(halves.acc, whole.acc)


def test_weights_do_not_depend_on_the_length_of_directions():
    density, _, tdist, directions = random_samples(6)
    torch.testing.assert_close(ray_utils.compute_weights(density, tdist / 2, directions * 2),
                               ray_utils.compute_weights(density, tdist, directions))


def test_compositing_converges_in_second_order():
    def density(t):
        return 1.5 * np.exp(-2 * (t - 3.7) ** 2) + 0.2 * np.sin(t) ** 2

    def colour(t):
        return 0.5 + 0.4 * np.sin(2 * t)

    def integrand(t):
        return density(t) * colour(t) * np.exp(-scipy.integrate.quad(density, 2, t)[0])

    exact = scipy.integrate.quad(integrand, 2, 6, epsabs=1e-10)[0]
    counts, errors = np.array([16, 32, 64, 128]), []
    for count in counts:
        tdist = torch.linspace(2, 6, count + 1, dtype=DOUBLE)
        middle = (tdist[1:] + tdist[:-1]) / 2
        rgb = torch.from_numpy(colour(middle.numpy()))[:, None].expand(-1, 3)
        direction = torch.tensor([0.0, 0, 1], dtype=DOUBLE)
        got = composite(torch.from_numpy(density(middle.numpy())), rgb, tdist, direction)
        errors.append(abs(got.rgb[0].item() - exact))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("background", [1.0, 0.25, torch.tensor([0.1, 0.5, 0.9])])
def test_an_empty_ray_has_the_background_at_the_far_end(background):
    tdist = torch.tensor([[2.0, 3, 4.5, 6]])
    got = ray_utils.volumetric_rendering(torch.rand(1, 3, 3), torch.zeros(1, 3), tdist, background)
    torch.testing.assert_close(got.rgb, torch.as_tensor(background).expand(1, 3))
    assert (got.acc.item(), got.distance_mean.item(), got.distance_median.item()) == (0, 6, 6)


def test_an_opaque_first_interval_hides_the_rest():
    rgb = torch.rand(1, 4, 3)
    density, tdist = torch.tensor([[1e10, 0.0, 5.0, 1e10]]), torch.tensor([[2.0, 3, 4, 5, 6]])
    got = composite(density, rgb, tdist, torch.tensor([[0.0, 0, 1]]), 1.0)
    torch.testing.assert_close(got.rgb, rgb[:, 0])
    assert (got.acc.item(), got.distance_mean.item(), got.distance_median.item()) == (1, 2.5, 2.5)


def test_each_ray_has_its_own_background():
    backgrounds = torch.rand(3, 3)
    weights = torch.tensor([[0.25], [0.0], [1.0]])
    got = ray_utils.volumetric_rendering(torch.ones(3, 1, 3), weights, torch.tensor([[2.0, 6]] * 3),
                                         backgrounds)
    torch.testing.assert_close(got.rgb, weights + (1 - weights) * backgrounds)


@pytest.mark.parametrize("weights, median", [
    ([0.5, 0.0, 0.5, 0.0], 4.0), ([0.25, 0.5, 0.25, 0.0], 3.5), ([0.0, 0.0, 0.0, 1.0], 5.5),
    ([0.0, 0.8, 0.0, 0.0], 3.625), ([0.1, 0.1, 0.1, 0.1], 6.0),
])
def test_the_median_is_where_transmittance_is_a_half(weights, median):
    tdist, weights = torch.tensor([2.0, 3, 4, 5, 6]), torch.tensor(weights)
    got = ray_utils.volumetric_rendering(torch.rand(4, 3), weights, tdist, 0.0)
    assert got.distance_median.item() == pytest.approx(median, abs=1e-5)


def test_expected_distances_of_nearly_empty_rays():
    tdist, weights = torch.tensor([2.0, 4, 6]), torch.tensor([[0.3, 0.1], [0.0, 0.02], [0.0, 0.0]])
    acc = weights.sum(dim=-1)
    found = ray_utils.expected_distance(weights, acc, tdist, 0.1)
    torch.testing.assert_close(found, torch.tensor([3.5, 1.0, 0.0]))
    found = ray_utils.expected_distance(weights, acc, tdist, 0.1, empty=torch.full((3,), 6.0))
    torch.testing.assert_close(found, torch.tensor([3.5, 6.0, 6.0]))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("bins", [1, 6])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_compositing_keeps_batch_axes_and_dtype(batch, bins, dtype):
    got = composite(*random_samples(*batch, bins=bins, dtype=dtype), 1.0)
    assert got.rgb.shape == (*batch, 3)
    assert got.acc.shape == got.distance_mean.shape == got.distance_median.shape == batch
    assert {x.dtype for x in got} == {dtype}


@pytest.mark.parametrize("size", [0.0, 1.0])
@pytest.mark.parametrize("density", [0.0, 1e-30, 1e-7, 1e10, 1e38])
def test_pixels_and_gradients_are_finite_at_worst_inputs(density, size):
    density = torch.full((2, 4), density, requires_grad=True)
    tdist = torch.tensor([[0.0, 0, 0, 0, 0], [2.0, 3, 3, 4, 6]], requires_grad=True)
    directions = torch.full((2, 3), size, requires_grad=True)
    rgb = torch.rand(2, 4, 3, requires_grad=True)
    got = composite(density, rgb, tdist, directions, 1.0)
    sum(x.sum() for x in got).backward()
    assert all(x.isfinite().all() for x in got)
    assert all(x.grad.isfinite().all() for x in (density, tdist, directions, rgb))
    for distance in (got.distance_mean, got.distance_median):
        assert ((distance >= tdist[:, 0]) & (distance <= tdist[:, -1])).all()


def test_compositing_gradients_equal_finite_differences():
    inputs = [x.requires_grad_() for x in random_samples(2, bins=4)]
    assert torch.autograd.gradcheck(lambda *x: tuple(composite(*x, 0.3))[:3], inputs)


@pytest.mark.parametrize("colour, background", [("white", 1.0), ("black", 0.0)])
def test_compositing_equals_the_official_code(golden, colour, background):
    density, rgb, tdist, directions = (
        golden(f"volumetric.{name}") for name in ("density", "rgb", "t_vals", "directions"))
    weights = ray_utils.compute_weights(density[..., 0], tdist, directions)
    got = ray_utils.volumetric_rendering(rgb, weights, tdist, background)
    # Alpha is 1 - exp(-x) there and loses eps / 2 to each of 24 samples; so does the opacity.
    for ours, name in ((weights, "white_weights"), (got.acc, "white_acc"),
                       (got.rgb, f"{colour}_comp_rgb")):
        torch.testing.assert_close(ours, golden(f"volumetric.{name}"), atol=8 * EPS, rtol=0)
    # The distance of an empty ray is the near end there, and one that is almost empty has alphas
    # of a few eps.
    hit = got.acc > 1e-3
    assert hit.sum() == 4
    torch.testing.assert_close(got.distance_mean[hit], golden("volumetric.white_distance")[hit],
                               atol=0, rtol=8 * EPS)


# From the world to pixels.


@pytest.mark.parametrize("kind", ["pinhole", "distorted", "fisheye", "mixed"])
def test_points_project_to_their_pixels(kind):
    lens_models = {}
    if kind in ("distorted", "mixed"):
        lens_models["distortion"] = torch.tensor([[-0.1, 0.02, 0.003, 0.0, 0.004, -0.003],
                                            [0.05, -0.01, 0.0, 0.001, 0.0, 0.0]], dtype=DOUBLE)
    if kind in ("fisheye", "mixed"):
        lens_models["fisheye"] = torch.tensor([kind == "fisheye", True])
    cameras = make_cameras(torch.stack([random_pose(), random_pose()]), **lens_models)
    x, y = torch.randint(WIDTH, (200,)), torch.randint(HEIGHT, (200,))
    camera = torch.arange(200) % 2
    rays = ray_utils.pixels_to_rays(cameras, camera, x, y)
    points = torch.as_tensor(points_on(rays))
    pixels, depth = ray_utils.points_to_pixels(cameras, camera, points)
    torch.testing.assert_close(pixels, torch.stack([x, y], dim=-1) + 0.5, atol=1e-6, rtol=0,
                               check_dtype=False)
    forward = -cameras.camtoworlds[camera, :, 2]
    torch.testing.assert_close(depth, ((points - rays.origins) * forward).sum(dim=-1))


def test_points_behind_a_camera_project_to_finite_pixels():
    points = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    pixels, depth = ray_utils.points_to_pixels(make_cameras(), torch.zeros(2).long(), points)
    assert depth.tolist() == [-2, 0] and torch.isfinite(pixels).all()


def test_points_beyond_a_lens_fold_have_no_pixel():
    """r + k r^3 with k < 0 falls beyond r = 1 / sqrt(-3 k), and would come back to the middle."""
    lens = torch.tensor([[-0.1, 0, 0, 0, 0, 0]], dtype=DOUBLE)
    fold = (1 / 0.3) ** 0.5
    for fisheye, radii in ((None, [0.9 * fold, 1.1 * fold, 10**0.5, 9.0]),
                           (torch.tensor([True]), np.tan([0.5, 0.8, 1.2, 1.5]))):
        cameras = make_cameras(torch.eye(4, dtype=DOUBLE)[None, :3], distortion=lens,
                               fisheye=fisheye)
        points = torch.tensor([[r, 0.0, -1.0] for r in radii], dtype=DOUBLE)
        pixels, _ = ray_utils.points_to_pixels(cameras, torch.zeros(4).long(), points)
        folds = [False, True, True, True] if fisheye is None else [False] * 4
        assert torch.isnan(pixels).all(dim=-1).tolist() == folds
        assert torch.isnan(pixels).any(dim=-1).tolist() == folds
