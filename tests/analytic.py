"""A model with an analytic scene: soft-edged solids, marched in fine steps, of known colour."""

import torch

import coord
from ray_utils import cast_rays, compute_weights, sample_along_rays, volumetric_rendering
from structures import RenderOutput

NUM_SAMPLES = 500


class AnalyticModel:
    """Solids given by a signed distance in the world, with density `peak` inside.

    colour: a function of world points; ndc: as in `Cameras`, for rays in NDC.
    """

    def __init__(self, signed_distance, colour, *, ndc=None, peak=200.0, softness=0.004,
                 bg_rgb=1.0):
        self.signed_distance, self.colour, self.ndc = signed_distance, colour, ndc
        self.peak, self.softness, self.bg_rgb = peak, softness, bg_rgb
        self.ray_shape = "cone" if ndc is None else "cylinder"
        self.num_queries, self.max_samples_per_level = 0, NUM_SAMPLES

    def normalized_distance(self, rays, t):
        return (t - rays.near) / (rays.far - rays.near)

    def density(self, means, covs):
        self.num_queries += means.shape[:-1].numel()
        distance = self.signed_distance(self._world(means))
        return self.peak * torch.sigmoid(-distance / self.softness)

    def __call__(self, rays, shading=None, density_normals=False):
        tdist = sample_along_rays(rays.near, rays.far, NUM_SAMPLES)
        means, covs = cast_rays(tdist, rays.origins, rays.directions, rays.radii, self.ray_shape)
        weights = compute_weights(self.density(means, covs), tdist, rays.directions)
        composited = volumetric_rendering(
            self.colour(self._world(means)), weights, tdist, self.bg_rgb)
        return [RenderOutput(**composited._asdict(), sdist=tdist, tdist=tdist, weights=weights)]

    samples_evenly = False

    def grids(self):
        return []

    def extra_images(self, output):
        return {}

    def max_samples_per_chunk(self, device):
        return 8192

    def parameters(self):
        return iter([torch.zeros(1)])

    def _world(self, points):
        return points if self.ndc is None else coord.from_ndc(points, *self.ndc)


def ball(centre, radius):
    """The signed distance of a ball."""
    return lambda points: (points - points.new_tensor(centre)).norm(dim=-1) - radius


def brick(low, high):
    """A signed distance of an axis-aligned box, exact near its faces."""
    def signed_distance(points):
        middle = (points.new_tensor(low) + points.new_tensor(high)) / 2
        half = (points.new_tensor(high) - points.new_tensor(low)) / 2
        return ((points - middle).abs() - half).amax(dim=-1)

    return signed_distance


def union(*shapes):
    """The signed distance of a union."""
    return lambda points: torch.stack([shape(points) for shape in shapes]).amin(dim=0)
