"""Empty-space skipping: the occupancy grid, and images with and without it."""

import pytest
import torch

import train
from config import default_config
from datasets import load_dataset
from fields.base import FieldOutput
from fields.occupancy import RESOLUTION, RayOccupancy, build_occupancy_grid
from image_utils import psnr
from model import build_model
from ray_utils import image_rays, reached_box
from rendering import build_occupancy, render_image
from scripts import bench_rendering
from structures import Rays
from tests.scenes import write_blender
from tests.test_model import make_rays

BOX = torch.tensor([[-2.0] * 3, [2.0] * 3])
CELL = 4 / RESOLUTION


def make_grid(density, box=BOX):
    return build_occupancy_grid(density, box, max_queries=1 << 13)


def soft_ball(points, centre=(0.0, 0.0, 0.0), radius=0.5, peak=60.0):
    distance = (points - points.new_tensor(centre)).norm(dim=-1) - radius
    return peak * torch.sigmoid(-distance / 0.01)


def segments(starts, ends):
    """Rays from starts to ends `[N, 3]`, near 0 and far 1."""
    one = torch.ones(len(starts), 1)
    return Rays(origins=starts, directions=ends - starts, viewdirs=ends - starts, radii=one,
                near=0 * one, far=one, lossmult=one, cam_idx=one.long())


def occupied_at(occupancy, points):
    """Whether very short segments at points are occupied."""
    return occupancy.along_rays(segments(points, points + 1e-4)).any_occupied()


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (1.1, -0.7, 0.3)])
def test_cells_near_a_ball_are_occupied(centre):
    occupancy = make_grid(lambda means, _: soft_ball(means, centre))
    points = torch.rand(20000, 3) * 4 - 2
    distance = (points - torch.tensor(centre)).norm(dim=-1) - 0.5
    occupied = occupied_at(occupancy, points)
    assert occupied[distance < 0].all()
    # Its soft edge, and a cell's neighbours in all directions.
    assert not occupied[distance > 0.06 + 2 * CELL * 3**0.5].any()
    assert occupancy.cell_size == CELL


def test_segments_through_the_ball_are_occupied_and_others_empty():
    occupancy = make_grid(lambda means, _: soft_ball(means))
    starts = torch.rand(5000, 3) * 3.9 - 1.95
    ends = (starts + torch.randn(5000, 3) * torch.logspace(-2, 0, 5000)[:, None]).clamp(-1.9, 1.9)
    fractions = torch.linspace(0, 1, 400)[:, None, None]
    distance = (starts + fractions * (ends - starts)).norm(dim=-1).amin(dim=0) - 0.5
    found = occupancy.along_rays(segments(starts, ends)).any_occupied()
    assert found[distance < 0].all() and (distance < 0).sum() > 50
    assert not found[distance > 0.2].any() and (distance > 0.2).sum() > 1000


def test_no_occupied_interval_is_missed():
    occupancy = make_grid(lambda means, _: soft_ball(means, radius=0.1))
    starts, ends = 0.3 * torch.randn(2, 2000, 3)
    rays = segments(starts, ends)
    tdist = torch.rand(2000, 20).sort(dim=-1).values
    ray_occupancy = occupancy.along_rays(rays)
    found = ray_occupancy.occupied_intervals(tdist)
    fractions = torch.linspace(0, 1, 50)
    t = tdist[:, :-1, None] + tdist.diff(dim=-1)[..., None] * fractions
    points = starts[:, None, None] + t[..., None] * (ends - starts)[:, None, None]
    inside = (points.norm(dim=-1) < 0.1).any(dim=-1)
    assert found[inside].all() and inside.sum() > 30
    assert found.float().mean() < 0.3
    assert ray_occupancy.any_occupied()[inside.any(dim=-1)].all()


def test_mean_density_of_a_smooth_cloud():
    def cloud(points, variances=None):
        return 3 * torch.exp(-((points - 0.2) ** 2).sum(dim=-1) / (2 * 0.4**2))

    occupancy = make_grid(cloud)
    starts, ends = 0.3 * torch.randn(2, 100, 3)
    tdist = torch.rand(100, 9).sort(dim=-1).values
    rays = segments(starts - 1, ends + 1)
    found = occupancy.along_rays(rays).mean_density(tdist)
    t = tdist[:, :-1, None] + tdist.diff(dim=-1)[..., None] * torch.linspace(0, 1, 200)
    points = rays.origins[:, None, None] + t[..., None] * rays.directions[:, None, None]
    wanted = cloud(points).mean(dim=-1)
    # A part is as long as a cell, over which this cloud changes by a fiftieth of its peak.
    torch.testing.assert_close(found, wanted, atol=0.15, rtol=0.05)
    assert wanted.max() > 1.5


def test_space_outside_the_grid_is_empty():
    occupancy = make_grid(lambda means, _: soft_ball(means, (1.9, 0.0, 0.0)))
    points = torch.tensor([[1.9, 0.0, 0.0], [2.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert occupied_at(occupancy, points).tolist() == [True, False, False]
    none = occupancy.along_rays(segments(torch.zeros(0, 3), torch.zeros(0, 3)))
    assert none.any_occupied().shape == (0,)


def test_the_grid_is_the_cube_around_a_long_box():
    box = torch.tensor([[1.0, 0.0, 0.0], [2.0, 4.0, 1.0]])
    occupancy = make_grid(lambda means, _: soft_ball(means, (1.5, 3.0, 0.5), 0.3), box)
    points = torch.tensor([[1.5, 3.0, 0.5], [1.5, 1.0, 0.5], [-0.4, 0.1, -1.4], [1.5, 2.8, 0.6]])
    assert occupied_at(occupancy, points).tolist() == [True, False, False, True]


def test_nan_density_counts_as_occupied():
    def density(means, _):
        return torch.where(means[:, 0] > 1.5, torch.nan, 0.0)

    occupancy = make_grid(density)
    points = torch.tensor([[1.7, 0.3, -1.0], [0.3, 0.3, -1.0]])
    assert occupied_at(occupancy, points).tolist() == [True, False]
    infinite = make_grid(
        lambda means, _: torch.where(means[:, 0] > 1.5, torch.inf, 0.0))
    ray_occupancy = infinite.along_rays(segments(torch.zeros(1, 3), torch.tensor([[2.0, 0, 0]])))
    assert ray_occupancy.mean_density(torch.linspace(0, 1, 9)[None]).isfinite().all()


def test_mostly_occupied_boxes_have_no_grid():
    assert make_grid(lambda means, _: torch.ones(len(means))) is None


def test_the_box_contains_the_scene_and_its_rays(tmp_path):
    write_blender(tmp_path / "scene", num_views=5, size=(16, 12))
    scene = load_dataset(default_config(scene=str(tmp_path / "scene")), "train").scene
    low, high = reached_box(scene)
    rays = [image_rays(scene.cameras, i).flatten() for i in range(5)]
    points = torch.cat([r.origins + t * r.directions for r in rays for t in (2.0, 4.0, 6.0)])
    assert (low - 1e-4 <= points).all() and (points <= high + 1e-4).all()
    assert (low <= scene.box[0]).all() and (high >= scene.box[1]).all()


# Skipping in models.


class BallField(torch.nn.Module):
    """A coloured ball, which counts the Gaussians that it is queried for."""

    needs_full_covariance, num_multisamples = False, 0

    def __init__(self):
        super().__init__()
        self.num_queries = 0

    def layers(self):
        return [torch.nn.Linear(30, 20)]

    def forward(self, gaussians, viewdirs=None, density_noise=None, with_rgb=True, appearance=None):
        self.num_queries += gaussians.means.shape[:-1].numel()
        density, rgb = soft_ball(gaussians.means), None
        if with_rgb:
            rgb = torch.sigmoid(3 * gaussians.means) * (0.5 + 0.5 * viewdirs[..., None, :] ** 2)
        return FieldOutput(density, rgb)


def rays_near_the_ball(count=600):
    """About half of them hit it."""
    rays = make_rays(count)
    origins = 4 * torch.nn.functional.normalize(rays.origins, dim=-1)
    aims = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    aims = aims * 1.2 * torch.rand(count, 1)
    directions = torch.nn.functional.normalize(aims - origins, dim=-1)
    return type(rays)(**(rays.__dict__ | {
        "origins": origins, "directions": 1.3 * directions, "viewdirs": directions,
        "near": rays.near / 1.3, "far": rays.far / 1.3}))


def make_model(name, **flags):
    model = build_model(default_config(
        model=name, num_samples=64, prop_samples=64, hidden=8, depth=1, prop_hidden=8, prop_depth=1,
        grid_finest=32, grid_log2_size=9, prop_finest=[16, 16], precision="fp32", **flags)).eval()
    model.field, model.proposal = BallField(), BallField()
    model.proposals = torch.nn.ModuleList([BallField(), BallField()])
    model.density = lambda means, variances: soft_ball(means)
    return model


@pytest.mark.parametrize("name", ["mipnerf", "mipnerf360", "zipnerf"])
def test_skipping_keeps_images_and_saves_queries(name):
    model, rays = make_model(name), rays_near_the_ball()
    whole = render_image(model, rays)
    num_queries = model.field.num_queries
    occupancy = build_occupancy(model, BOX, 10**9)
    model.field.num_queries = 0
    found = render_image(model, rays, occupancy=occupancy)
    assert psnr(found.rgb.numpy(), whole.rgb.numpy()) > 50
    assert (found.acc - whole.acc).abs().max() < 0.02
    hit = whole.acc > 0.9
    assert hit.sum() > 100
    torch.testing.assert_close(found.distance_median[hit], whole.distance_median[hit],
                               atol=0.01, rtol=0)
    # Proposals have gathered most samples about the ball already.
    assert model.field.num_queries < (0.5 if name == "mipnerf" else 0.75) * num_queries


@pytest.mark.parametrize("num_samples,coarse", [(64, 0), (12, 1)])
def test_the_grid_replaces_a_coarse_level_of_similar_resolution(num_samples, coarse):
    model, rays = make_model("mipnerf"), rays_near_the_ball(50)
    model.num_samples = num_samples
    occupancy = build_occupancy(model, BOX, 10**9)
    calls, query = [], model.query_occupied
    model.query_occupied = lambda *args, with_rgb, **options: calls.append(with_rgb) or query(
        *args, with_rgb=with_rgb, **options)
    render_image(model, rays, occupancy=occupancy)
    assert calls == coarse * [False] + [True]


@pytest.mark.parametrize("flags,num_rays", [
    ({}, 1000), ({"opaque_background": True}, 10**9),
    ({"lindisp": True}, 10**9)])
def test_few_rays_and_unbounded_models_have_no_grid(flags, num_rays):
    model = make_model("mipnerf", **flags)
    assert build_occupancy(model, BOX, num_rays) is None


@pytest.mark.parametrize("far,has_grid", [(1, True), (1e6, False)])
def test_contracted_models_have_a_grid_if_their_rays_end_near_the_scene(far, has_grid):
    model = make_model("zipnerf", contraction=True)
    assert (build_occupancy(model, far * BOX, 10**9) is not None) == has_grid


def test_empty_rays_show_the_background_when_skipping():
    model, rays = make_model("mipnerf", bg_range=(0.0, 0.0)), rays_near_the_ball()
    occupancy = build_occupancy(model, BOX, 10**9)
    met = occupancy.along_rays(rays).any_occupied()
    assert 0.3 * len(rays) < met.sum() < 0.95 * len(rays)
    image = render_image(model, rays, occupancy=occupancy)
    assert (image.rgb[~met] == 0).all() and (image.acc[~met] == 0).all()
    torch.testing.assert_close(image.distance_median[~met], rays.far[~met, 0])
    assert (image.acc[met] > 0.9).any()


def test_training_skips_nothing():
    model, rays = make_model("mipnerf").train(), rays_near_the_ball(20)
    assert build_occupancy(model, BOX, 10**9) is not None
    model.field.num_queries = 0
    model(rays)
    assert model.field.num_queries == 2 * 64 * 20


@pytest.mark.parametrize("name", ["mipnerf", "mipnerf360", "zipnerf"])
@pytest.mark.parametrize("precision,tolerance", [("fp32", 1e-5), ("bf16", 2e-2)])
def test_queries_per_interval_equal_queries_per_ray(name, precision, tolerance):
    """Real fields in fully occupied space."""
    model = build_model(default_config(
        model=name, num_samples=12, prop_samples=10, hidden=16, depth=2, view_hidden=8,
        bottleneck=8, prop_hidden=8, prop_depth=1, grid_coarsest=4, grid_finest=32,
        grid_log2_size=9, prop_finest=[16, 16], precision=precision)).eval()
    for field in model.grids():
        torch.nn.init.normal_(field.table)
    rays = rays_near_the_ball(40)
    whole = model(rays)[-1]
    full = torch.ones(40, 3)  # Few segments, so that the grid does not replace the coarse level.
    ray_occupancy = RayOccupancy.from_density(full.repeat(1, 10), rays.near, rays.far, 1 << 13)
    found = model(rays, ray_occupancy=ray_occupancy)[-1]
    torch.testing.assert_close(found.rgb, whole.rgb, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.acc, whole.acc, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_skipping_supports_any_batch_shape(shape):
    model = make_model("mipnerf")
    occupancy = build_occupancy(model, BOX, 10**9)
    rays = make_rays(*shape)
    assert render_image(model, rays, occupancy=occupancy).rgb.shape == (*shape, 3)


def test_the_benchmark_compares_with_and_without_skipping(tmp_path, capsys):
    write_blender(tmp_path / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(tmp_path / "scene"),
                "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "2",
                "--eval_every", "0", "--no-final_eval"])
    capsys.readouterr()
    assert bench_rendering.main([str(tmp_path / "run"), "--views", "2", "--device", "cpu"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[:3] == ["| run", "16x12", "12"]
    assert abs(float(row[4]) - float(row[6])) < 0.05
