"""Surfaces under light (NeRV, Srinivasan et al., CVPR 2021): reflectance, visibility, shading.

Radiance is linear. Directions are unit vectors that point away from the surface: `incoming` towards
the light, `outgoing` towards who looks. M points are flat; each is lit by K lights.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ray_utils import orthonormal_frame
from relighting.lights import incident, luminance

# What all dielectrics reflect of light that comes straight at them.
F0 = 0.04

# Below it, highlights are so small and bright that training does not find them.
MIN_ROUGHNESS = 0.1

# What meets the second surface with less than this share adds nothing that shows.
MIN_HIT_OPACITY = 0.02

# Of pairs of a point and a light, so many stay in a CPU's cache, or fill a GPU.
PAIRS_PER_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 19}

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class Points(NamedTuple):
    """Points on surfaces: positions, normals, outgoing, albedo `[M, 3]`; roughness `[M, 1]`;
    variances `[M]` of the Gaussians that stand for them."""

    positions: Tensor
    variances: Tensor
    normals: Tensor
    outgoing: Tensor
    albedo: Tensor
    roughness: Tensor


class Visibility(NamedTuple):
    """What points see in directions: the `share` of light that passes to infinity, in [0, 1], and
    the mean `distance` to what stops the rest.

    Times 1 - share it is the expected termination distance of NeRV, section 4.1.
    """

    share: Tensor
    distance: Tensor

    def of_light(self, distance):
        """The share of what comes from lights at a `distance`, before or behind what stops it."""
        return torch.where(self.distance < distance, self.share, 1.0)


def brdf(normals, incoming, outgoing, albedo, roughness):
    """A microfacet and a Lambertian part `[..., 3]` (NeRV, supplement; Walter et al., EGSR 2007).

    normals, incoming, outgoing, albedo: `[..., 3]`; roughness: `[..., 1]`, whose square is GGX's
    alpha. Of normals the direction counts, and not the length. The Lambertian part is of what is
    mirrored neither on the way in nor on the way out, so that no more leaves than arrives. Sides
    are not looked at: for a direction below the surface the value is that of one along it.
    """
    normals = normalize(normals, dim=-1, eps=1e-6)
    half = normalize(incoming + outgoing, dim=-1, eps=1e-6)
    alpha_squared = roughness**4
    # 1 - (n.h)^2, without its cancellation where highlights are.
    sine_squared = (torch.linalg.cross(*torch.broadcast_tensors(normals, half)) ** 2).sum(
        dim=-1, keepdim=True)
    # It is never less for unit vectors, but between opposite directions there is no half vector.
    cosine_squared = dot(normals, half) ** 2
    spread = torch.maximum(sine_squared + alpha_squared * cosine_squared, alpha_squared)
    facets = alpha_squared / (math.pi * spread**2)
    # Schlick's fit of Smith's shadowing; its cosines cancel those below the fraction line.
    k = 0.5 * roughness**2
    mirrored, diffuse = facets * _fresnel(dot(incoming, half)) / 4, albedo / math.pi
    for direction in (incoming, outgoing):
        cosine = dot(normals, direction).clamp(min=0)
        mirrored = mirrored / (cosine * (1 - k) + k)
        diffuse = diffuse * (1 - _fresnel(cosine))
    return mirrored + diffuse


def _fresnel(cosine):
    """The share of light that is mirrored (Schlick's fit)."""
    return F0 + (1 - F0) * (1 - cosine.clamp(0, 1)) ** 5


def dot(a, b):
    """`[..., 1]`."""
    return (a * b).sum(dim=-1, keepdim=True)


def cosine_hemisphere(normals, count, shift=None):
    """`count` directions `[M, count, 3]` about normals `[M, 3]`, denser by the cosine.

    shift: `[M, 2]` in [0, 1), how far each set is turned about its normal, and moved away from it;
    then each direction is anywhere, the denser by the cosine. None takes the same set for all.
    """
    index = torch.arange(count, device=normals.device).to(normals)
    turn, outward = normals.new_tensor([[0.0, 0.5]]).T if shift is None else shift.T
    radius = ((index + outward[:, None]) / count).sqrt()[..., None]
    angle = (GOLDEN_ANGLE * index + 2 * math.pi * turn[:, None])[..., None]
    side, up = (v[:, None] for v in orthonormal_frame(normals))
    return (radius * angle.cos() * side + radius * angle.sin() * up
            + (1 - radius**2).clamp(min=0).sqrt() * normals[:, None])


def finite_difference_normals(log_density, positions, step):
    """Unit normals `[M, 3]` against the growth of density, by differences over `step` to each side.

    log_density: a function of `[M, 6, 3]` that gives `[M, 6]`: a density grows by orders of
    magnitude, its logarithm evenly.
    """
    offsets = step * torch.eye(3).to(positions)
    around = torch.cat([positions[:, None] + offsets, positions[:, None] - offsets], dim=1)
    after, before = log_density(around).chunk(2, dim=1)
    return _unit(before - after)


def gradient_normals(log_density, positions):
    """Unit normals `[M, 3]` against the growth of density, by its derivative.

    log_density: a function of `[M, 1, 3]` that gives `[M, 1]`.
    """
    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        positions = positions if positions.requires_grad else positions.detach().requires_grad_()
        values = log_density(positions[:, None])
        gradient, = torch.autograd.grad(values.sum(), positions, create_graph=learning)
    return _unit(-gradient)


def _unit(vectors):
    """Unit vectors, but short ones near zero, where the direction means nothing."""
    return vectors * (dot(vectors, vectors) + 1e-6).rsqrt()


class SurfaceShading(nn.Module):
    """How surfaces look under light: reflectance and visibility fields, and shading by them.

    reflectance: a field with 4 channels and no view directions; visibility: a field with 2 channels
    and view directions. `reach`: the farthest that a point can see anything, set from the box;
    bounce_directions: how many directions indirect light is taken from.
    """

    def __init__(self, reflectance, visibility, bounce_directions):
        super().__init__()
        self.reflectance, self.visibility = reflectance, visibility
        self.bounce_directions = bounce_directions
        self.register_buffer("reach", torch.ones(()))

    def points(self, positions, variances, normals, outgoing):
        """`Points` with their reflectance: albedo in [0, 1] and roughness."""
        channels = self.reflectance(self._gaussians(self.reflectance, positions, variances)).rgb
        albedo, roughness = channels[:, 0].split([3, 1], dim=-1)
        roughness = MIN_ROUGHNESS + (1 - MIN_ROUGHNESS) * roughness
        return Points(positions, variances, normals, outgoing, albedo, roughness)

    def seen(self, positions, variances, directions):
        """What the visibility field says that points see in `directions [M, K, 3]`: `[M, K]`."""
        gaussians = self._gaussians(self.visibility, positions, variances)
        share, distance = self.visibility(gaussians, directions).rgb.unbind(-1)
        return Visibility(share, self.reach * distance)

    def direct(self, points, lights, visible=None):
        """Light that comes straight from `Lights [M, K]` and is reflected: `[M, 3]`.

        Also the share of it that arrives, `[M, 1]`, of what would without anything in between.
        visible: the share `[M, K]` of each light that arrives, where that is known; the visibility
        field is asked if None.
        """
        count = len(points.positions)
        at_once = PAIRS_PER_CHUNK.get(lights.places.device.type, PAIRS_PER_CHUNK["cuda"])
        size = max(1, at_once // lights.places.shape[1])
        if torch.is_grad_enabled() or count <= size:
            return self._direct(points, lights, visible)
        parts = [self._direct(Points(*(x[i : i + size] for x in points)), lights[i : i + size],
                              None if visible is None else visible[i : i + size])
                 for i in range(0, count, size)]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def _direct(self, points, lights, visible):
        light = incident(lights, points.positions)
        if visible is None:
            seen = self.seen(points.positions, points.variances, light.directions)
            visible = seen.of_light(light.distance)
        arriving = light.radiance * dot(points.normals[:, None], light.directions).clamp(min=0)
        reflected = self._reflected(points, light.directions, visible[..., None] * arriving)
        brightness = luminance(arriving)
        share = (visible * brightness).sum(dim=-1) / brightness.sum(dim=-1).clamp(min=1e-6)
        return reflected, share[:, None]

    def indirect(self, points, lights, surface_at, shift=None):
        """Light that is reflected to the points by what they see, and once more by them: `[M, 3]`.

        lights: `[M, K]`; surface_at: a function of positions, variances and outgoing directions
        that gives `Points`; shift: as in `cosine_hemisphere`. Incident light is detached: no
        gradient flows to the surfaces it was reflected from.
        """
        directions = cosine_hemisphere(points.normals, self.bounce_directions, shift)
        seen = self.seen(points.positions, points.variances, directions)
        with torch.no_grad():
            arriving = torch.zeros_like(directions)
            point, way = (1 - seen.share > MIN_HIT_OPACITY).nonzero().unbind(-1)
            towards, distance = directions[point, way], seen.distance[point, way, None]
            met = surface_at(points.positions[point] + distance * towards,
                             points.variances[point], -towards)
            arriving[point, way] = self.direct(met, lights[point])[0]
        # The cosine and pi are the directions' own density.
        arriving = (math.pi / self.bounce_directions) * (1 - seen.share)[..., None] * arriving
        return self._reflected(points, directions, arriving)

    @staticmethod
    def _reflected(points, incoming, arriving):
        """The sum over K of light `arriving [M, K, 3]` that is reflected `[M, 3]`."""
        per_point = (v[:, None] for v in (points.outgoing, points.albedo, points.roughness))
        return (brdf(points.normals[:, None], incoming, *per_point) * arriving).sum(dim=1)

    @staticmethod
    def _gaussians(field, positions, variances):
        covs = variances[:, None, None].expand(-1, 1, 3)
        return field.make_gaussians(positions[:, None], covs)
