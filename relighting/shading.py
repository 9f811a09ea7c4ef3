"""Shading of surfaces (NeRV, Srinivasan et al., CVPR 2021): reflectance, visibility, light.

Radiance is linear. Directions are unit vectors that point away from the surface: `light_dirs`
towards the light, `view_dirs` towards the camera. M points are flat; each is lit by K lights.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fields.base import Field
from ray_utils import orthonormal_frame
from relighting.lights import Lights, incident, luminance

# Reflectance of dielectrics at normal incidence.
F0 = 0.04

# Highlights of smoother surfaces are too small and bright for training to find.
MIN_ROUGHNESS = 0.1

# Secondary rays with less opacity are ignored.
MIN_HIT_OPACITY = 0.02

# Pairs of a point and a light shaded at once: as many as fit a CPU's cache, or fill a GPU.
PAIRS_PER_CHUNK = {"cpu": 1 << 14, "cuda": 1 << 19}

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class SurfacePoints(NamedTuple):
    """Points on surfaces.

    positions, normals, view_dirs, albedo: `[M, 3]`; roughness: `[M, 1]`; variances: `[M]`, of the
    isotropic Gaussians that fields are queried for.
    """

    positions: Tensor
    variances: Tensor
    normals: Tensor
    view_dirs: Tensor
    albedo: Tensor
    roughness: Tensor


class Visibility(NamedTuple):
    """Predicted `transmittance` along rays from surface points, and expected `distance` to the
    blocker.

    transmittance is in [0, 1], up to the bounding box. NeRV's expected termination depth (section
    4.1) is (1 - transmittance) * distance.
    """

    transmittance: Tensor
    distance: Tensor

    def of_light_at(self, distance: Tensor) -> Tensor:
        """Visibility of lights at a `distance`: 1 for those before the blocker."""
        return torch.where(self.distance < distance, self.transmittance, 1.0)


class DirectLight(NamedTuple):
    """Reflected direct `radiance [M, 3]`, and the mean `visibility [M, 1]` of lights, weighted by
    their luminance."""

    radiance: Tensor
    visibility: Tensor


# Reflectance.


def brdf(normals: Tensor, light_dirs: Tensor, view_dirs: Tensor, albedo: Tensor,
         roughness: Tensor) -> Tensor:
    """GGX specular plus Lambertian reflectance `[..., 3]` (NeRV, supplement; Walter et al., EGSR
    2007).

    normals (of any length), light_dirs, view_dirs, albedo: `[..., 3]`; roughness: `[..., 1]`, whose
    square is GGX's alpha. The Lambertian part is scaled by the Fresnel transmission of both
    directions, so that energy is conserved. Directions below the surface are treated as grazing.
    """
    normals = normalize(normals, dim=-1, eps=1e-6)
    half = normalize(light_dirs + view_dirs, dim=-1, eps=1e-6)
    alpha_squared = roughness**4
    # 1 - (n.h)^2, without its cancellation inside highlights.
    sine_squared = (torch.linalg.cross(*torch.broadcast_tensors(normals, half)) ** 2).sum(
        dim=-1, keepdim=True)
    cosine_squared = dot(normals, half) ** 2
    # At least alpha^2 for unit vectors; opposite directions have no half vector.
    ggx_denominator = torch.maximum(sine_squared + alpha_squared * cosine_squared, alpha_squared)
    ndf = alpha_squared / (math.pi * ggx_denominator**2)
    # Schlick's fit of Smith's shadowing; its cosines cancel those of the denominator.
    k = 0.5 * roughness**2
    specular, diffuse = ndf * _fresnel(dot(light_dirs, half)) / 4, albedo / math.pi
    for direction in (light_dirs, view_dirs):
        cosine = dot(normals, direction).clamp(min=0)
        specular = specular / (cosine * (1 - k) + k)
        diffuse = diffuse * (1 - _fresnel(cosine))
    return specular + diffuse


def _fresnel(cosine):
    """Fresnel reflectance at an angle of incidence (Schlick's fit)."""
    return F0 + (1 - F0) * (1 - cosine.clamp(0, 1)) ** 5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product `[..., 1]` of vectors `[..., 3]`."""
    return (a * b).sum(dim=-1, keepdim=True)


# Directions and normals.


def cosine_hemisphere(normals: Tensor, count: int, shift: Tensor | None = None) -> Tensor:
    """`count` cosine-distributed directions `[M, count, 3]` around normals `[M, 3]`.

    A Fibonacci spiral. shift: `[M, 2]` in [0, 1), the rotation of each point's spiral and the
    offset along its radius, which make the sampling unbiased; None gives all points the same.
    """
    index = torch.arange(count, device=normals.device).to(normals)
    turn, outward = normals.new_tensor([[0.0, 0.5]]).T if shift is None else shift.T
    radius = ((index + outward[:, None]) / count).sqrt()[..., None]
    angle = (GOLDEN_ANGLE * index + 2 * math.pi * turn[:, None])[..., None]
    side, up = (v[:, None] for v in orthonormal_frame(normals))
    return (radius * angle.cos() * side + radius * angle.sin() * up
            + (1 - radius**2).clamp(min=0).sqrt() * normals[:, None])


def finite_difference_normals(log_density: Callable, positions: Tensor,
                              step: float | Tensor) -> Tensor:
    """Unit normals `[M, 3]` from central differences of log density, `step` to each side.

    log_density: a function from `[M, 6, 3]` to `[M, 6]`. Density varies by orders of magnitude
    across a surface, its logarithm evenly.
    """
    offsets = step * torch.eye(3, dtype=positions.dtype, device=positions.device)
    stencil = torch.cat([positions[:, None] + offsets, positions[:, None] - offsets], dim=1)
    plus, minus = log_density(stencil).chunk(2, dim=1)
    return safe_normalize(minus - plus)


def gradient_normals(log_density: Callable, positions: Tensor) -> Tensor:
    """Unit normals `[M, 3]` from the negative gradient of log density.

    log_density: a function from `[M, 1, 3]` to `[M, 1]`.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        positions = positions if positions.requires_grad else positions.detach().requires_grad_()
        values = log_density(positions[:, None])
        gradient, = torch.autograd.grad(values.sum(), positions, create_graph=create_graph)
    return safe_normalize(-gradient)


def safe_normalize(vectors: Tensor) -> Tensor:
    """Unit vectors; vectors near zero, whose direction is noise, stay short."""
    return vectors * (dot(vectors, vectors) + 1e-6).rsqrt()


# Shading.


class SurfaceShading(nn.Module):
    """Reflectance and visibility fields, and the light that surfaces reflect by them.

    reflectance: a field with 4 channels and no view directions; visibility: a field with 2 channels
    and view directions. The buffer `reach` is the diagonal of the scene's box, the unit of the
    visibility field's distances.
    """

    def __init__(self, reflectance: Field, visibility: Field):
        super().__init__()
        self.reflectance, self.visibility = reflectance, visibility
        self.register_buffer("reach", torch.ones(()))

    def surface_points(self, positions: Tensor, variances: Tensor, normals: Tensor,
                       view_dirs: Tensor) -> SurfacePoints:
        """Query the reflectance field: albedo in [0, 1] and roughness in [MIN_ROUGHNESS, 1]."""
        channels = self.reflectance(_gaussians(self.reflectance, positions, variances)).rgb
        albedo, roughness = channels[:, 0].split([3, 1], dim=-1)
        roughness = MIN_ROUGHNESS + (1 - MIN_ROUGHNESS) * roughness
        return SurfacePoints(positions, variances, normals, view_dirs, albedo, roughness)

    def query_visibility(self, positions: Tensor, variances: Tensor,
                         directions: Tensor) -> Visibility:
        """Query the visibility field from M points along `directions [M, K, 3]`: `[M, K]`."""
        gaussians = _gaussians(self.visibility, positions, variances)
        transmittance, distance = self.visibility(gaussians, directions).rgb.unbind(-1)
        return Visibility(transmittance, self.reach * distance)

    def direct_light(self, points: SurfacePoints, lights: Lights,
                     light_visibility: Tensor | None = None) -> DirectLight:
        """Reflected light of `lights [M, K]`.

        light_visibility: `[M, K]`; None queries the visibility field.
        """
        count, device = len(points.positions), lights.places.device
        pairs = PAIRS_PER_CHUNK.get(device.type, PAIRS_PER_CHUNK["cuda"])
        size = max(1, pairs // lights.places.shape[1])
        if torch.is_grad_enabled() or count <= size:
            return self._direct_light(points, lights, light_visibility)
        chunks = [self._direct_light(
            SurfacePoints(*(x[i : i + size] for x in points)), lights[i : i + size],
            None if light_visibility is None else light_visibility[i : i + size])
            for i in range(0, count, size)]
        return DirectLight(*(torch.cat(values) for values in zip(*chunks, strict=True)))

    def _direct_light(self, points, lights, light_visibility):
        light = incident(lights, points.positions)
        if light_visibility is None:
            visibility = self.query_visibility(
                points.positions, points.variances, light.directions)
            light_visibility = visibility.of_light_at(light.distance)
        irradiance = light.radiance * dot(points.normals[:, None], light.directions).clamp(min=0)
        reflected = _reflect(points, light.directions, light_visibility[..., None] * irradiance)
        brightness = luminance(irradiance)
        total = brightness.sum(dim=-1).clamp(min=1e-6)
        mean_visibility = (light_visibility * brightness).sum(dim=-1) / total
        return DirectLight(reflected, mean_visibility[:, None])

    def indirect_light(self, points: SurfacePoints, lights: Lights, surface_at: Callable,
                       num_directions: int, shift: Tensor | None = None) -> Tensor:
        """Reflected one-bounce light `[M, 3]`, from the surfaces that the points see.

        lights: `[M, K]`; surface_at: a function from positions, variances and view directions to
        `SurfacePoints`; num_directions: sampled per point; shift: as in `cosine_hemisphere`.
        Incident light is detached: no gradient flows to the surfaces it was reflected from.
        """
        directions = cosine_hemisphere(points.normals, num_directions, shift)
        visibility = self.query_visibility(points.positions, points.variances, directions)
        opacity = 1 - visibility.transmittance
        with torch.no_grad():
            irradiance = torch.zeros_like(directions)
            point, direction_index = (opacity > MIN_HIT_OPACITY).nonzero().unbind(-1)
            hit_dirs = directions[point, direction_index]
            distance = visibility.distance[point, direction_index, None]
            hit_points = surface_at(points.positions[point] + distance * hit_dirs,
                                    points.variances[point], -hit_dirs)
            irradiance[point, direction_index] = self.direct_light(
                hit_points, lights[point]).radiance
        # The directions' density, cosine over pi, cancels the cosine.
        irradiance = (math.pi / num_directions) * opacity[..., None] * irradiance
        return _reflect(points, directions, irradiance)


def _reflect(points, light_dirs, irradiance):
    """Reflected light `[M, 3]`, summed over K, of `irradiance [M, K, 3]` from `light_dirs`."""
    per_point = (v[:, None] for v in (points.view_dirs, points.albedo, points.roughness))
    return (brdf(points.normals[:, None], light_dirs, *per_point) * irradiance).sum(dim=1)


def _gaussians(field, positions, variances):
    """Isotropic Gaussians `[M, 1]` of the field's kind."""
    covs = variances[:, None, None].expand(-1, 1, 3)
    return field.make_gaussians(positions[:, None], covs)
