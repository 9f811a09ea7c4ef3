"""Lights of a video's frames, from the lights that a scene was trained under."""

import math
from pathlib import Path

import torch

from relighting.lights import Lights, environment_lights, incident, rotate_about_z
from relighting.radiance_files import read_environment
from runtime.errors import UserError
from structures import stack

# Elevation of the light that circles the scene.
ELEVATION = math.radians(45)


def frame_lights(known: Lights, relight: str, num_frames: int,
                 environment: str | None = None) -> Lights:
    """The `Lights [num_frames, K]` of a video.

    known: `Lights [N, K]` of the training images. relight: "none" (the first image's lights in all
    frames), "light" (one light of typical strength and distance circles the scene once), or
    "environment" (an environment rotates once; `environment` is the path of an equirectangular map,
    None takes the first image's). Raises UserError if there is no environment to rotate.
    """
    angles = [2 * math.pi * i / num_frames for i in range(num_frames)]
    if relight == "light":
        return stack([rotate_about_z(typical_light(known), angle) for angle in angles])
    if relight == "environment":
        shines = known.colours[0].sum(dim=-1) > 0
        if environment is None and not known.distant[0][shines].all():
            raise UserError("--relight environment needs an environment, but the first training "
                            "image is lit by point lights; give a map by --environment.")
        base = known[0] if environment is None else lights_of_map(environment)
        return stack([rotate_about_z(base, angle) for angle in angles])
    return stack([known[0]] * num_frames)


def typical_light(known: Lights) -> Lights:
    """One white light `[1]` towards +x with the median total radiance of `known [N, K]`.

    It lies at their median distance, or is distant if they are.
    """
    arriving = incident(known, torch.zeros_like(known.places[:, 0]))
    total = arriving.radiance.sum(dim=1).mean(dim=-1).median()
    near = arriving.distance[arriving.distance.isfinite() & (known.colours.sum(dim=-1) > 0)]
    distance = near.median() if len(near) else torch.ones(())
    direction = torch.tensor([math.cos(ELEVATION), 0.0, math.sin(ELEVATION)])
    return Lights(
        places=(distance * direction)[None], colours=(total * distance**2).expand(1, 3),
        distant=torch.tensor([[not len(near)]]),
    )


def lights_of_map(path: str | Path) -> Lights:
    """The lights of an equirectangular map of linear radiance."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--environment {path} is not a file; give an equirectangular map "
                        "(OpenEXR, or 16-bit PNG).")
    return environment_lights(read_environment(path))
