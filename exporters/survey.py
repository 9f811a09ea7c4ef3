"""What the training cameras see of a trained scene: its surface, box and density."""

from typing import NamedTuple

import numpy as np
import torch

import coord
from cameras.paths import summarize_cameras
from ray_utils import pixels_to_rays, points_to_pixels
from rendering import render_image, world_distance
from runtime.errors import UserError
from structures import Cameras

# The training views look at the scene with this many rays in all, from this many of them.
SURVEY_RAYS = 1 << 16

SURVEY_VIEWS = 48

# The box leaves out this percentage of the surface points on each side, and adds this margin.
BOX_PERCENTILE = 0.5

BOX_MARGIN = 0.05

# Where at least this share of the surface points is within the cameras' circle, the others are
# surroundings.
ENCLOSED = 0.1

# Of the densities where training rays have lost half their light. Measured on the demo scene: a
# higher one thins what is seen, a lower one thickens it.
THRESHOLD_PERCENTILE = 10


class Survey(NamedTuple):
    """A coarse look from training cameras.

    cameras: `Cameras` of the N views; stride: every how many pixels a ray was sent; distances: N
    tensors `[h, w]` of world distances to the surface, inf where there is none; points: `[M, 3]` on
    the surface that is wanted, in the coordinates of rays; radius: the median width there of what
    the model saw at once, likewise.
    """

    cameras: Cameras
    stride: int
    distances: list
    points: torch.Tensor
    radius: float


def survey_scene(model, scene, chunk=None, occupancy=None):
    """The `Survey` of a scene: where the rays of its training cameras end.

    Of what cameras stand around, the points are no farther out than they typically are: the
    surroundings of an unbounded capture would leave few points of the grid for its middle.
    """
    cameras = scene.cameras
    view = summarize_cameras(cameras)
    pixels = cameras.sizes.prod(dim=-1)
    # Of a Multicam scene, the finest scale alone.
    large = torch.nonzero(2 * pixels > pixels.max())[:, 0]
    count = min(SURVEY_VIEWS, len(large))
    cameras = cameras[large[torch.linspace(0, len(large) - 1, count).round().long()]]
    total = int(cameras.sizes.prod(dim=-1).sum())
    stride = max(1, round((total / SURVEY_RAYS) ** 0.5))
    distances, points, radii = [], [], []
    for index in range(len(cameras)):
        axes = [torch.arange(min(stride // 2, side - 1), side, stride, device=pixels.device)
                for side in cameras.sizes[index].tolist()]
        y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
        rays = pixels_to_rays(cameras, torch.full_like(x, index), x, y)
        output = render_image(model, rays, chunk, occupancy)
        solid = output.acc > 0.5
        t = output.distance_median
        distances.append(world_distance(cameras, rays, t).where(solid, torch.inf))
        points.append((rays.origins + t[..., None] * rays.directions)[solid])
        width = rays.radii[..., 0] * (t if model.ray_shape == "cone" else 1)
        radii.append(width[solid])
    points, radii = torch.cat(points), torch.cat(radii)
    if not view.forward_facing and view.distance:
        focus = torch.as_tensor(view.focus, device=points.device)
        within = (points.double() - focus).norm(dim=-1) <= view.distance
        if within.float().mean() > ENCLOSED:
            points, radii = points[within], radii[within]
    return Survey(cameras, stride, distances, points, float(radii.median()) if len(radii) else 0.0)


def choose_box(config, survey, scene_box):
    """The corners `[3]`, `[3]` of the box: what the survey met, unless flags say otherwise.

    With `--keep_unseen` it is the whole scene's, since what was never seen may be anywhere.
    """
    points = survey.points.double().cpu().numpy()
    if len(points) and not config.keep_unseen:
        low, high = np.percentile(points, [BOX_PERCENTILE, 100 - BOX_PERCENTILE], axis=0)
        margin = BOX_MARGIN * (high - low).max()
        low = np.maximum(low - margin, scene_box[0].numpy())
        high = np.minimum(high + margin, scene_box[1].numpy())
    else:
        low, high = scene_box.double().numpy()
    for axis, (name, ends) in enumerate(ranges(config).items()):
        if ends is not None:
            low[axis], high[axis] = ends
        if not low[axis] < high[axis]:
            raise UserError(f"the box goes from {low[axis]:g} to {high[axis]:g} along {name}; "
                            f"give --{name}_range a smaller and a larger number.")
    return low, high


def ranges(config):
    """The ends of the box that were typed, or None, by axis."""
    return {"x": config.x_range, "y": config.y_range, "z": config.z_range}


def choose_threshold(config, survey, density):
    """`--sigma_threshold`, else a density that most training rays exceed where they end."""
    if config.sigma_threshold is not None:
        return config.sigma_threshold
    if not len(survey.points):
        raise UserError("no ray of the training views meets anything, so that there is no surface "
                        "yet; train longer, or give a --sigma_threshold.")
    return float(np.percentile(density(survey.points.cpu().numpy()), THRESHOLD_PERCENTILE))


def density_at(model, survey, step, chunk):
    """A function of points `[M, 3]` that gives the model's density `[M]` there.

    Each point stands for a Gaussian as wide as a grid cell, and not finer than what the training
    rays told apart.
    """
    variance = max(step**2 / 12, survey.radius**2 / 4)
    device = survey.points.device
    at_once = chunk * model.max_samples_per_level if chunk else model.max_samples_per_chunk(device)

    @torch.no_grad()
    def density(points):
        found = [np.empty(0, dtype=np.float32)]
        for part in np.array_split(points, max(1, -(-len(points) // at_once))):
            means = torch.as_tensor(part, dtype=torch.float32, device=device)[:, None]
            covs = torch.full_like(means, variance)
            found.append(model.density(means, covs)[:, 0].cpu().numpy())
        return np.concatenate(found)

    return density


def is_seen(survey, points, slack):
    """Whether a training view sees world points `[M, 3]`, or what is `slack [M]` before them."""
    seen = np.zeros(len(points), dtype=bool)
    points, slack = (torch.as_tensor(x, dtype=torch.float32, device=survey.points.device)
                     for x in (points, slack))
    for index, surface in enumerate(survey.distances):
        camera = torch.full_like(slack, index, dtype=torch.long)
        pixels, depth = points_to_pixels(survey.cameras, camera, points)
        cell = (pixels / survey.stride).floor()
        height, width = surface.shape
        inside = ((cell >= 0) & (cell < cell.new_tensor([width, height]))).all(dim=-1) & (depth > 0)
        x, y = cell.where(inside[:, None], 0.0).long().unbind(-1)
        distance = (points - survey.cameras.camtoworlds[index, :, 3]).norm(dim=-1)
        # A cell of the survey is some pixels wide, and a slanted surface as much deeper in it.
        cell_width = survey.stride * pixel_width(survey.cameras, index) * distance
        seen |= (inside & (distance <= surface[y, x] + slack + cell_width)).cpu().numpy()
    return seen


def pixel_width(cameras, index):
    """The width of a pixel in the middle of a picture, at distance 1."""
    return float(cameras.pixtocams[index, 0, :2].norm())


def to_world(points, step, ndc):
    """Points `[M, 3]` of the grid in the world, and how long `[M]` a step of the grid is there."""
    if ndc is None:
        return points, np.full(len(points), step)
    points = torch.as_tensor(points)
    deeper = points + points.new_tensor([0.0, 0.0, step])
    world, beyond = (coord.from_ndc(p, *ndc).numpy() for p in (points, deeper))
    return world, np.linalg.norm(beyond - world, axis=1)
