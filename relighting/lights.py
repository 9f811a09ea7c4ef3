"""Lights: points, and environments as many distant lights; what they send to a point.

World: z up. Radiance is linear. An environment is an equirectangular map `[H, W, 3]` of radiance,
a panorama seen from inside (Blender's convention): its upper row is the zenith, its middle looks
along +x, and what lies right of the middle lies towards -y.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from structures import TensorRecord

# How much red, green and blue count for what is drawn most (Rec. 709).
LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True, kw_only=True)
class Lights(TensorRecord):
    """K lights, of each ray or picture of a batch.

    places: `[..., K, 3]` positions, or for distant lights unit vectors towards them.
    colours: `[..., K, 3]` radiant intensity, or for distant lights radiance times solid angle; a
        light that is none has 0.
    distant: bool `[..., K, 1]`, which lights have a direction and no position.
    """

    places: Tensor
    colours: Tensor
    distant: Tensor

    def is_close(self, other):
        """Whether others are as many, and the same up to rounding."""
        pairs = ((getattr(lights, name) for lights in (self, other))
                 for name in ("places", "colours", "distant"))
        return all(a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-5)
                   for a, b in pairs)


class Incident(NamedTuple):
    """Light that arrives at points: unit `directions [..., K, 3]` towards K lights, `radiance`
    `[..., K, 3]` times solid angle, and how far `[..., K]` the lights are (inf: distant)."""

    directions: Tensor
    radiance: Tensor
    distance: Tensor


def incident(lights, points):
    """The `Incident` light at points `[..., 3]`, if nothing is in between."""
    offset = torch.where(lights.distant, lights.places, lights.places - points[..., None, :])
    squared = (offset**2).sum(dim=-1, keepdim=True).clamp(min=1e-12)
    distance = torch.where(lights.distant, torch.inf, squared.sqrt())
    return Incident(offset * squared.rsqrt(), lights.colours / squared, distance[..., 0])


def point_lights(positions, intensities):
    """`Lights` of positions and radiant intensities `[..., K, 3]`."""
    distant = torch.zeros_like(positions[..., :1], dtype=torch.bool)
    return Lights(places=positions, colours=intensities, distant=distant)


def environment_lights(environment, turn=0.0):
    """An environment map `[H, W, 3]` as `Lights` of H W directions.

    turn: radians by which all of it is turned about z, counterclockwise seen from above.
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


def turned(lights, angle):
    """Lights turned about z by radians, counterclockwise seen from above."""
    x, y, z = lights.places.unbind(-1)
    cosine, sine = math.cos(angle), math.sin(angle)
    places = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
    return Lights(places=places, colours=lights.colours, distant=lights.distant)


def luminance(colours):
    """The brightness `[...]` of linear colours `[..., 3]`."""
    return (colours * colours.new_tensor(LUMINANCE)).sum(dim=-1)


def importance_sample_lights(lights, chosen):
    """Some of many lights in their stead: brighter ones more often, and each the weaker for it.

    lights: `[N, K]`; chosen: `[N, J]` in [0, 1), J numbers of each. The sum of what J lights send
    has the mean of what all send. Returns `Lights [N, J]`.
    """
    odds = luminance(lights.colours).clamp(min=1e-12)
    odds = odds / odds.sum(dim=-1, keepdim=True)
    index = torch.searchsorted(odds.cumsum(dim=-1), chosen.contiguous())
    index = index.clamp(max=odds.shape[-1] - 1)
    found = lights.map(lambda x: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])))
    share = (chosen.shape[-1] * odds.gather(1, index))[..., None]
    return Lights(places=found.places, colours=found.colours / share, distant=found.distant)


def overall(lights):
    """Of lights as they arrive at the origin: the mean direction `[..., 3]`, which is the shorter
    the more sides they come from, and the sum `[..., 3]` of their radiance."""
    light = incident(lights, torch.zeros_like(lights.places[..., 0, :]))
    total = light.radiance.sum(dim=-2)
    weight = luminance(light.radiance)[..., None]
    mean = (weight * light.directions).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1e-12)
    return mean, total


def tone_map(radiance):
    """Radiance as a colour in [0, 1): x / (1 + x) (NeRV, section 4)."""
    radiance = radiance.clamp(min=0)
    return radiance / (1 + radiance)
