"""Rays to whole images: chunks, empty-space skipping, depth and normal images."""

from dataclasses import replace

import torch

import image_utils
from fields.occupancy import build_occupancy_grid
from ray_utils import world_points
from relighting.components import component_images
from runtime.memory import smaller_until_it_fits
from structures import RenderOutput, concatenate

# Fewest samples in all for which a grid of what is empty is made: it asks about half a million.
MIN_SAMPLES_FOR_OCCUPANCY = 2_000_000

# Where empty space is passed over, so many times as many rays leave as many samples or fewer.
OCCUPANCY_CHUNK_MULT = 32


def build_occupancy(model, box, num_rays):
    """The model's `OccupancyGrid` in a box `[2, 3]` that contains the rays, or None.

    None if building it costs more than skipping saves over `num_rays` rays, if most of the box is
    occupied, or if the model is unbounded.
    """
    num_samples = num_rays * model.max_samples_per_level
    if not model.samples_evenly or num_samples <= MIN_SAMPLES_FOR_OCCUPANCY:
        return None

    def density(means, variances):
        return model.density(means[:, None], variances[:, None])[:, 0]

    return build_occupancy_grid(density, box, model.max_samples_per_chunk(box.device))


def render_image(model, rays, chunk=None, occupancy=None):
    """Render rays of any batch shape, `chunk` at a time, without gradient: a `RenderOutput`.

    Only the finest level's per-ray quantities are kept. A chunk of None takes `default_chunk`; on
    out-of-memory it is halved. occupancy: an `OccupancyGrid` whose empty space is skipped.
    """
    shape = rays.shape
    flat = rays.flatten()
    chunk = chunk or default_chunk(model, flat.origins.device, occupancy)
    parts, first = [], 0
    while first < len(flat) or not parts:
        part, chunk = smaller_until_it_fits(chunk, lambda size, first=first: render_chunk(
            model, flat[first : first + size], occupancy))
        parts.append(part)
        first += chunk
    return concatenate(parts).map(lambda x: x.reshape((*shape, *x.shape[1:])))


def default_chunk(model, device, occupancy=None):
    """The number of rays to render at once, from how many samples the model takes at once."""
    samples = model.max_samples_per_chunk(device)
    if occupancy is not None:
        samples *= OCCUPANCY_CHUNK_MULT
    return max(1, samples // model.max_samples_per_level)


@torch.no_grad()
def render_chunk(model, rays, occupancy=None):
    """The finest level's per-ray quantities of a flat `Rays`."""
    if occupancy is None:
        return replace(model(rays)[-1], sdist=None, tdist=None, weights=None)
    ray_occupancy = occupancy.along_rays(rays)
    index = ray_occupancy.any_occupied().nonzero()[:, 0]
    output = model(rays[index], ray_occupancy=ray_occupancy[index])[-1]

    def scatter(values, background):
        return background.index_copy(0, index, values)

    far = rays.far[:, 0]
    return RenderOutput(
        rgb=scatter(output.rgb, torch.full_like(rays.origins, model.bg_rgb)),
        acc=scatter(output.acc, torch.zeros_like(far)),
        distance_mean=scatter(output.distance_mean, far),
        distance_median=scatter(output.distance_median, far),
        extras={name: scatter(value, value.new_zeros(len(rays), *value.shape[1:]))
                for name, value in output.extras.items()},
    )


def render_view(model, dataset, index, chunk, with_geometry=True):
    """Pictures of one view: a `dict` of float arrays `[h, w, 3]`.

    Its keys are ground_truth, rgb, `with_geometry` also depth and normals, and what
    `component_images` gives. `model` is in eval mode.
    """
    batch = dataset.image(index)
    output = render_image(model, batch.rays, chunk)
    pictures = {
        "ground_truth": image_utils.quantize(batch.rgb), "rgb": image_utils.quantize(output.rgb)
    }
    if with_geometry:
        distance = world_distance(dataset.cameras, batch.rays, output.distance_median)
        near, far = image_utils.distance_range(distance, output.acc)
        pictures["depth"] = image_utils.visualize_distance(distance, output.acc, near, far)
        normals = surface_normals(distance, batch.rays.viewdirs, output.acc)
        pictures["normals"] = image_utils.visualize_normals(normals, output.acc)
    return pictures | component_images(output)


def world_distance(cameras, rays, distance):
    """How far from the camera, in world units, the points at `distance [...]` in t are."""
    positions = cameras.camtoworlds[rays.cam_idx[..., 0], :, 3]
    return (world_points(cameras, rays, distance) - positions).norm(dim=-1)


# A normal is that of a plane through a pixel's neighbours up to so many pixels away: the more, the
# noisier the distances are, in widths of a pixel. Measured on the demo scene, and looked at on
# captures, whose distances are three times as noisy.
NORMAL_WINDOWS = (3, 9)

WINDOW_PER_NOISE = 10


def surface_normals(distance, viewdirs, acc):
    """World normals `[h, w, 3]` of the surface that a distance map shows; 0 where it is empty.

    distance: `[h, w]` from the camera in world units along the unit vectors `viewdirs [h, w, 3]`;
    acc: `[h, w]` opacity. All are tensors. Each normal is that of the plane which fits the points
    of the neighbouring pixels best: what is drawn is the geometry that is seen, where a gradient
    of the density also shows its noise inside the surface.
    """
    points = distance[..., None] * viewdirs
    solid = (acc > 0.5).to(points)
    across = [viewdirs.diff(dim=axis).norm(dim=-1).flatten() for axis in (0, 1)]
    pixel_width = distance * torch.nan_to_num(torch.cat(across).mean(), nan=1.0)
    window = round(WINDOW_PER_NOISE * _noise(distance, pixel_width, solid))
    window = min(max(window, NORMAL_WINDOWS[0]), NORMAL_WINDOWS[1])
    normals = -viewdirs
    # First those neighbours count that are near along the ray, then those near a first plane.
    for reach in (2 / 3 * window, 1 / 3 * window):
        normals = _fitted_normals(points, solid, normals, reach * pixel_width, window, viewdirs)
    return normals * solid[..., None]


def _noise(distance, pixel_width, solid):
    """The median distance of a pixel from the mean of its two neighbours, in widths of a pixel."""
    bends = []
    for x, width, there in ((distance, pixel_width, solid), (distance.T, pixel_width.T, solid.T)):
        bend = (x[1:-1] - 0.5 * (x[2:] + x[:-2])).abs() / width[1:-1].clamp(min=1e-12)
        bends.append(bend[(there[1:-1] * there[2:] * there[:-2]) > 0])
    bends = torch.cat(bends)
    return float(bends.median()) if len(bends) else 0.0


def _fitted_normals(points, solid, guess, reach, window, viewdirs):
    """Normals of planes through the neighbours that lie within `reach` of the planes of `guess`."""
    height, width = solid.shape
    margin = torch.nn.functional.pad(
        torch.cat([points, solid[..., None]], dim=-1), (0, 0, window, window, window, window)
    )
    total, first = torch.zeros_like(solid)[..., None], torch.zeros_like(points)
    # Where neighbours do not span a plane, a little of this turns it towards the camera.
    facing = torch.eye(3).to(points) - viewdirs[..., :, None] * viewdirs[..., None, :]
    second = 0.01 * (reach**2)[..., None, None] * facing
    for dy in range(-window, window + 1):
        for dx in range(-window, window + 1):
            there = margin[window + dy : window + dy + height, window + dx : window + dx + width]
            offset = there[..., :3] - points
            distance = (offset * guess).sum(dim=-1) / reach.clamp(min=1e-12)
            nearness = -0.5 * distance**2 - (dx**2 + dy**2) / (2 * (0.6 * window) ** 2)
            weight = (there[..., 3] * torch.exp(nearness))[..., None]
            total = total + weight
            first = first + weight * offset
            second = second + (weight * offset)[..., :, None] * offset[..., None, :]
    mean = first / total.clamp(min=1e-12)
    covariance = second - mean[..., :, None] * first[..., None, :]
    normals = torch.linalg.eigh(covariance).eigenvectors[..., 0]
    behind = (normals * viewdirs).sum(dim=-1, keepdim=True) > 0
    return torch.where(behind, -normals, normals)
