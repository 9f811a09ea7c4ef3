"""Lights: points, and environments as many distant lights; and the light that reaches a point.

World: z up. Radiance is linear. An environment is an equirectangular map `[H, W, 3]` of radiance, a
panorama seen from inside (Blender's convention): its upper row is the zenith, its centre is towards
+x, and what lies right of the centre is towards -y.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from structures import TensorRecord

# Weights of linear red, green and blue in luminance (Rec. 709).
LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True, kw_only=True)
class Lights(TensorRecord):
    """K lights of each ray or image of a batch.

    places: `[..., K, 3]` positions, or for distant lights unit vectors towards them.
    colours: `[..., K, 3]` radiant intensity, or for distant lights radiance times solid angle; 0
        for a light that only pads the record.
    distant: bool `[..., K, 1]`, which lights have a direction instead of a position.
    """

    places: Tensor
    colours: Tensor
    distant: Tensor


class Incident(NamedTuple):
    """Light that reaches points from K lights.

    directions: `[..., K, 3]` unit vectors towards the lights; radiance: `[..., K, 3]` times solid
    angle; distance: `[..., K]` to the lights (inf for distant ones).
    """

    directions: Tensor
    radiance: Tensor
    distance: Tensor


class MeanLight(NamedTuple):
    """Summary of all lights: luminance-weighted mean direction `[..., 3]` (not normalised: shorter
    if light comes from more sides) and total radiance `[..., 3]`."""

    direction: Tensor
    radiance: Tensor


def incident(lights: Lights, points: Tensor) -> Incident:
    """Unoccluded incident light at points `[..., 3]`."""
    offset = torch.where(lights.distant, lights.places, lights.places - points[..., None, :])
    squared = (offset**2).sum(dim=-1, keepdim=True).clamp(min=1e-12)
    distance = torch.where(lights.distant, torch.inf, squared.sqrt())
    return Incident(offset * squared.rsqrt(), lights.colours / squared, distance[..., 0])


def point_lights(positions: Tensor, intensities: Tensor) -> Lights:
    """`Lights` with positions and radiant intensities `[..., K, 3]`."""
    distant = torch.zeros_like(positions[..., :1], dtype=torch.bool)
    return Lights(places=positions, colours=intensities, distant=distant)


def environment_lights(environment: Tensor, turn: float = 0.0) -> Lights:
    """An environment map `[H, W, 3]` as `Lights` in H W directions.

    turn: radians by which it is rotated about z, counterclockwise seen from above.
    """
    height, width = environment.shape[:2]
    polar = (torch.arange(height).to(environment) + 0.5) * (math.pi / height)
    azimuth = (0.5 - (torch.arange(width).to(environment) + 0.5) / width) * (2 * math.pi) + turn
    polar, azimuth = torch.meshgrid(polar, azimuth, indexing="ij")
    sine = polar.sin()
    places = torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), polar.cos()], dim=-1)
    solid_angle = sine * (math.pi / height) * (2 * math.pi / width)
    places, colours = places.reshape(-1, 3), (environment * solid_angle[..., None]).reshape(-1, 3)
    return Lights(places=places, colours=colours,
                  distant=torch.ones_like(places[:, :1], dtype=torch.bool))


def rotate_about_z(lights: Lights, angle: float) -> Lights:
    """Lights rotated about the z axis by `angle` radians, counterclockwise seen from above."""
    x, y, z = lights.places.unbind(-1)
    cosine, sine = math.cos(angle), math.sin(angle)
    places = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
    return Lights(places=places, colours=lights.colours, distant=lights.distant)


def luminance(colours: Tensor) -> Tensor:
    """Luminance `[...]` of linear colours `[..., 3]`."""
    return (colours * colours.new_tensor(LUMINANCE)).sum(dim=-1)


def importance_sample_lights(lights: Lights, u: Tensor) -> Lights:
    """Sample J lights by luminance, reweighted to stay unbiased.

    lights: `[N, K]`; u: `[N, J]` numbers in [0, 1), where the cumulative distribution is inverted.
    The expected sum of light from the sampled `Lights [N, J]` is that from all lights.
    """
    probability = luminance(lights.colours).clamp(min=1e-12)
    probability = probability / probability.sum(dim=-1, keepdim=True)
    index = torch.searchsorted(probability.cumsum(dim=-1), u.contiguous())
    index = index.clamp(max=probability.shape[-1] - 1)
    sampled = lights.map(lambda x: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])))
    expected_count = (u.shape[-1] * probability.gather(1, index))[..., None]
    return Lights(places=sampled.places, colours=sampled.colours / expected_count,
                  distant=sampled.distant)


def mean_light(lights: Lights) -> MeanLight:
    """The `MeanLight` of lights `[..., K]` at the origin."""
    light = incident(lights, torch.zeros_like(lights.places[..., 0, :]))
    total = light.radiance.sum(dim=-2)
    weight = luminance(light.radiance)[..., None]
    mean = (weight * light.directions).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1e-12)
    return MeanLight(mean, total)


def tone_map(radiance: Tensor) -> Tensor:
    """Radiance as a colour in [0, 1): x / (1 + x) (NeRV, section 4)."""
    radiance = radiance.clamp(min=0)
    return radiance / (1 + radiance)
