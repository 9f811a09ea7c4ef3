"""Camera refinement: derivatives, preconditioning, recovery of disturbed cameras."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

import cameras.refinement as refinement_file
from cameras.alignment import TrainingCameras, align_cameras, with_refined_cameras
from cameras.refinement import (
    DIAGONAL_PADDING,
    LEAST_PADDING,
    PARAMETERS,
    CameraRefinement,
    change_cameras,
    damped_inverse_roots,
    frustum_points,
    mean_squares,
    preconditioners,
    projection_jacobians,
    rotation_matrices,
)
from config import default_config
from loaders.scales import cameras_at_scales
from ray_utils import pixels_to_rays, points_to_pixels
from structures import Batch, Cameras, RenderOutput
from tests.scenes import look_at

LENSES = {"pinhole": (False, False), "distorted": (True, False), "fisheye": (True, True)}


def make_cameras(count=3, lens="pinhole", dtype=torch.float64, size=(60, 40), ndc=None):
    distorted, fisheye = LENSES[lens]
    rng = np.random.default_rng(1)
    poses = np.stack([look_at(4 * x / np.linalg.norm(x)) for x in rng.normal(size=(count, 3))])
    width, height = size
    matrix = np.array([[1 / 50, 0, -width / 100], [0, -1 / 55, height / 110], [0, 0, -1]])
    coefficients = torch.tensor([-0.05, 0.02, 0.0, 0.0, 0.002, -0.001], dtype=dtype)
    return Cameras(
        camtoworlds=torch.as_tensor(poses[:, :3], dtype=dtype),
        pixtocams=torch.as_tensor(matrix, dtype=dtype).expand(count, 3, 3),
        sizes=torch.tensor(size).expand(count, 2), near=2.0, far=6.0,
        distortion=coefficients.expand(count, 6) if distorted else None,
        fisheye=torch.ones(count, dtype=torch.bool) if fisheye else None, ndc=ndc)


def all_pixels(cameras, step=7):
    width, height = cameras.sizes[0].tolist()
    return torch.meshgrid(torch.arange(len(cameras)), torch.arange(0, width, step),
                          torch.arange(0, height, step), indexing="ij")


# Changes.


def test_gradients_are_finite_where_a_fisheye_is_no_pinhole_lens():
    cameras = make_cameras(1, "fisheye", torch.float32, size=(60, 60))
    matrix = torch.tensor([[1 / 16, 0, -30 / 16], [0, -1 / 16, 30 / 16], [0, 0, -1]])
    coefficients = torch.tensor([-0.03, -0.01, 0.005, -0.001, 0.0, 0.0])
    cameras = replace(cameras, pixtocams=matrix[None], distortion=coefficients[None])
    refinement = CameraRefinement.for_cameras(cameras)
    rays = pixels_to_rays(refinement(cameras), *all_pixels(cameras, step=1))
    (rays.directions.sum() + rays.radii.sum()).backward()
    assert refinement.latent.grad.isfinite().all()


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("pose_only", [False, True])
def test_cameras_that_are_not_refined_yet_give_the_same_rays_to_the_bit(lens, pose_only):
    cameras = make_cameras(2, lens, torch.float32)
    refined = CameraRefinement(2, pose_only)(cameras)
    before, after = (pixels_to_rays(c, *all_pixels(cameras)) for c in (cameras, refined))
    for name in ("origins", "directions", "viewdirs", "radii"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_turns_are_matrix_exponentials_with_a_derivative_at_zero():
    vectors = torch.tensor([[0.3, -1.2, 0.5], [1e-5, 2e-5, 0.0], [0.0, 0.0, 0.0]],
                           dtype=torch.float64)
    for (x, y, z), found in zip(vectors.tolist(), rotation_matrices(vectors), strict=True):
        wanted = expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert torch.autograd.gradcheck(rotation_matrices, vectors.requires_grad_())


def test_intrinsics_change_as_a_camera_matrix_does():
    """K with focal lengths times e^s, and a principal point moved by fractions of them."""
    cameras = make_cameras(1)
    changes = torch.zeros(1, len(PARAMETERS), dtype=torch.float64)
    changes[0, 6:] = torch.tensor([0.1, 0.02, -0.03, 0.01, 0.005], dtype=torch.float64)
    changed = change_cameras(cameras, changes)
    matrix = torch.linalg.inv(changed.pixtocams[0])
    focal_x, focal_y = 50 * np.exp(0.1), 55 * np.exp(0.1)
    wanted = [[focal_x, 0, -(30 + 0.02 * focal_x)], [0, -focal_y, -(20 - 0.03 * focal_y)],
              [0, 0, -1]]
    np.testing.assert_allclose(matrix, wanted, atol=1e-9)
    assert changed.distortion[0].tolist() == [0.01, 0.005, 0, 0, 0, 0]


@pytest.mark.parametrize("ndc", [None, (50.0, 60, 40)])
@pytest.mark.parametrize("lens", LENSES)
def test_rays_are_differentiable_in_all_parameters(lens, ndc):
    """Against central differences, through the inversion of the lens and of NDC."""
    cameras = make_cameras(1, lens, ndc=ndc)
    if ndc:
        forward = torch.tensor(look_at([0.3, 0.1, 5.0])[None, :3])
        forward[:, :, 3] = torch.tensor([0.3, 0.1, 0.2])
        cameras = replace(cameras, camtoworlds=forward)
    pixels = all_pixels(cameras, step=19)
    weights = torch.randn(12, 10, generator=torch.Generator().manual_seed(0)).double()

    def numbers(changes):
        rays = pixels_to_rays(change_cameras(cameras, changes), *pixels)
        values = torch.cat([rays.origins, rays.directions, rays.viewdirs, rays.radii], dim=-1)
        return (weights * values.reshape(-1, 10)).sum()

    changes = 1e-3 * torch.arange(1.0, 12.0, dtype=torch.float64)[None]
    assert torch.autograd.gradcheck(numbers, changes.requires_grad_(), atol=1e-5)


# The preconditioner.


@pytest.mark.parametrize("lens", LENSES)
def test_jacobians_agree_with_finite_differences(lens):
    cameras = make_cameras(2, lens)
    points = frustum_points(cameras, 20)
    found = projection_jacobians(cameras, points)
    index, step = torch.arange(2)[:, None].expand(2, 20), 1e-6
    for k in range(len(PARAMETERS)):
        change = torch.zeros(2, len(PARAMETERS), dtype=torch.float64)
        change[:, k] = step
        ends = [points_to_pixels(change_cameras(cameras, sign * change), index, points)[0]
                for sign in (1, -1)]
        torch.testing.assert_close(found[..., k], (ends[0] - ends[1]) / (2 * step * 60),
                                   rtol=1e-5, atol=1e-6)


def test_points_fill_the_image_and_the_range_of_distances():
    cameras = make_cameras(2, "distorted")
    points = frustum_points(cameras, 2000)
    index = torch.arange(2)[:, None].expand(2, 2000)
    pixels, _ = points_to_pixels(cameras, index, points)
    assert (pixels >= 0).all() and (pixels <= cameras.sizes[:, None]).all()
    torch.testing.assert_close(pixels.mean(dim=1), cameras.sizes.double() / 2, rtol=0.05, atol=0)
    distances = (points - cameras.camtoworlds[:, None, :, 3]).norm(dim=-1)
    assert 0.4 <= distances.min() < 0.5 and 100 < distances.max() <= 1000


def test_preconditioned_parameters_move_points_alike_and_independently():
    """P J^T J P is the identity, up to the damping that a padding of the diagonal adds."""
    cameras = make_cameras(2, "distorted")
    points = frustum_points(cameras, 5000)
    squares = mean_squares(projection_jacobians(cameras, points))
    roots = preconditioners(cameras)
    diagonal = squares.diagonal(dim1=-2, dim2=-1)
    padding = (DIAGONAL_PADDING * diagonal).clamp(min=LEAST_PADDING)
    whitened = roots @ squares @ roots + roots @ torch.diag_embed(padding) @ roots
    torch.testing.assert_close(whitened, torch.eye(11).double().expand(2, 11, 11), atol=1e-8,
                               rtol=0)
    undamped = roots @ squares @ roots
    assert (torch.linalg.eigvalsh(undamped) <= 1).all()


def test_points_beyond_the_lens_do_not_count():
    jacobians = torch.ones(1, 3, 2, 2)
    jacobians[0, 1] = torch.nan
    assert torch.equal(mean_squares(jacobians), torch.full((1, 2, 2), 2.0))
    assert damped_inverse_roots(mean_squares(torch.full((1, 3, 2, 2), torch.nan))).isfinite().all()


def test_regularisers_are_variances_over_cameras():
    cameras = make_cameras(2, dtype=torch.float32)
    refinement = CameraRefinement(2)
    with torch.no_grad():
        refinement.latent[:] = 0.3  # The same change of all cameras is free.
        assert refinement.variance_loss(cameras).item() == pytest.approx(0, abs=1e-12)
        refinement.latent[0, 6:] += torch.tensor([0.2, 0.04, 0.0, 0.6, 0.0])
    # Two numbers that differ by d have the variance d^2 / 4; 0.04 focal lengths are 2 pixels.
    wanted = 0.1 * 0.2**2 / 4 + 0.1 * (2**2 / 4) / 2 + 0.01 * (0.6**2 / 4) / 2
    assert refinement.variance_loss(cameras).item() == pytest.approx(wanted, rel=1e-4)


# Recovery, with a known scene in place of a network.


def radiance(origins, viewdirs):
    """Smooth colours of a large sphere's inside, where rays leave it."""
    along = (origins * viewdirs).sum(dim=-1, keepdim=True)
    root = (along**2 - (origins**2).sum(dim=-1, keepdim=True) + 400).sqrt()
    points = origins + (root - along) * viewdirs
    waves = points @ torch.tensor([[0.5, 0.1, 0.2], [-0.1, 0.6, 0.1], [0.2, -0.3, 0.5]]).to(points)
    return 0.5 + 0.5 * torch.sin(waves)


class KnownScene(torch.nn.Module):
    """A model that renders `radiance`."""

    def forward(self, rays):
        rgb = radiance(rays.origins, rays.viewdirs)
        one = torch.ones_like(rgb[..., 0])
        return [RenderOutput(rgb=rgb, acc=one, distance_mean=one, distance_median=one)]


def disturbed(cameras, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    changes = torch.zeros(len(cameras), 6)
    changes[:, :3] = size * torch.randn(len(cameras), 3, generator=generator)
    return change_cameras(cameras, changes)


def mean_angle(a, b):
    cosines = torch.einsum("nij,nij->n", a.camtoworlds[:, :, :3],
                           b.camtoworlds[:, :, :3].detach())
    return float(torch.rad2deg(((cosines - 1) / 2).clamp(-1, 1).acos()).mean())


def test_disturbed_cameras_are_recovered_from_colours():
    """Most of an error of 2 degrees is gone after 60 steps on 128 pixels."""
    true = make_cameras(4, dtype=torch.float32)
    wrong = disturbed(true, 0.02)
    refinement = CameraRefinement.for_cameras(wrong)
    optimizer = torch.optim.Adam(refinement.parameters(), betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        cam_idx, x, y = (torch.randint(n, (128,), generator=generator) for n in (4, 60, 40))
        rays = pixels_to_rays(true, cam_idx, x, y)
        batch = Batch(rays=replace(rays, origins=rays.origins * torch.nan),
                      rgb=radiance(rays.origins, rays.viewdirs), pixels=torch.stack([x, y], -1))
        cast = refinement.cast(wrong, batch)
        optimizer.zero_grad()
        ((radiance(cast.rays.origins, cast.rays.viewdirs) - batch.rgb) ** 2).mean().backward()
        optimizer.param_groups[0]["lr"] = 5e-3 * 0.1 ** (step / 60)
        optimizer.step()
    before, after = mean_angle(true, wrong), mean_angle(true, refinement(wrong))
    assert before > 1.2 and after < 0.3 * before, (before, after)


class Images:
    """Images taken by `true` cameras, of which a dataset has the poses `cameras`."""

    split = "test"

    def __init__(self, true, cameras, num_scales=1):
        self.true, self.cameras, self.num_scales = true, cameras, num_scales
        self.num_photographs = len(true) // num_scales

    def __len__(self):
        return len(self.true)

    def with_cameras(self, cameras):
        return Images(self.true, cameras, self.num_scales)

    def image(self, index):
        width, height = self.true.sizes[index].tolist()
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        rays = pixels_to_rays(self.true, torch.full_like(x, index), x, y)
        return Batch(rays=rays, rgb=radiance(rays.origins, rays.viewdirs),
                     mask=torch.ones(height, width, 1))


def test_test_cameras_are_aligned_and_then_refined_on_their_images():
    """A world that drifted by a known similarity, and test cameras that were also disturbed."""
    true, training = (make_cameras(count, dtype=torch.float32) for count in (2, 5))
    drift = change_cameras(training, torch.tensor([[0.05, 0, 0, 0.1, 0, 0]]).expand(5, -1))
    config = default_config(batch_size=256, camera_test_steps=40, seed=1)
    unmoved = TrainingCameras(training, training)
    scene = KnownScene()
    scene.weight = torch.nn.Parameter(torch.ones(1))
    images = Images(true, disturbed(true, 0.02))
    found = with_refined_cameras(scene, images, config, unmoved)
    assert mean_angle(true, found.cameras) < 0.3 * mean_angle(true, images.cameras)
    assert scene.weight.requires_grad and scene.weight.grad is None
    # Without steps they are only aligned.
    config = config.replace(camera_test_steps=0)
    aligned = with_refined_cameras(scene, images, config, TrainingCameras(training, drift))
    torch.testing.assert_close(
        aligned.cameras.camtoworlds,
        align_cameras(images.cameras, TrainingCameras(training, drift)).camtoworlds)
    images.split = "train"
    assert with_refined_cameras(scene, images, config, unmoved).cameras is training


def test_a_photograph_has_one_camera_at_all_scales():
    """Rays of coarse pixels stay the mean of their fine ones, and poses remain shared."""
    cameras = make_cameras(3)
    at_scales = cameras_at_scales(cameras, (1, 2))
    refinement = CameraRefinement.for_cameras(cameras)
    assert refinement.latent.shape == (3, 11)
    with torch.no_grad():
        refinement.latent.copy_(0.01 * torch.randn(3, 11, dtype=torch.float64))
        refined = refinement(at_scales)
    torch.testing.assert_close(refined[:3].pixtocams, refinement(cameras).pixtocams)
    assert torch.equal(refined.camtoworlds[3:], refined.camtoworlds[:3])
    assert torch.equal(refined.distortion[3:], refined.distortion[:3])
    x, y, index = torch.tensor([4, 5, 4, 5]), torch.tensor([6, 6, 7, 7]), torch.tensor([1] * 4)
    fine = pixels_to_rays(refined, index, x, y).directions.mean(dim=0)
    coarse = pixels_to_rays(refined, index[:1] + 3, x[:1] // 2, y[:1] // 2).directions[0]
    torch.testing.assert_close(coarse, fine, atol=5e-4, rtol=0)
    loss = refinement.variance_loss(at_scales)
    torch.testing.assert_close(loss, refinement.variance_loss(cameras))


def test_test_images_of_a_photograph_share_its_refined_pose():
    true = cameras_at_scales(make_cameras(2, dtype=torch.float32), (1, 2))
    images = Images(true, disturbed(true, 0.02), num_scales=2)
    config = default_config(batch_size=64, camera_test_steps=3, seed=1)
    cameras = make_cameras(5, dtype=torch.float32)
    scene = KnownScene()
    scene.weight = torch.nn.Parameter(torch.ones(1))
    found = with_refined_cameras(scene, images, config, TrainingCameras(cameras, cameras))
    poses = found.cameras.camtoworlds
    assert torch.equal(poses[2:], poses[:2]) and not torch.equal(poses, images.cameras.camtoworlds)


def test_many_cameras_are_preconditioned_like_each_alone(monkeypatch):
    monkeypatch.setattr(refinement_file, "NUM_POINTS", 50)
    cameras = make_cameras(6, "fisheye", torch.float32)
    alone = torch.cat([CameraRefinement.for_cameras(cameras[i : i + 1]).preconditioner
                       for i in range(6)])
    torch.testing.assert_close(CameraRefinement.for_cameras(cameras).preconditioner, alone,
                               rtol=1e-3, atol=1e-4)
