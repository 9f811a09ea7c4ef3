"""Lights of a video's frames, from those that a scene was trained under."""

import math
from pathlib import Path

import torch

from relighting.lights import Lights, environment_lights, incident, turned
from relighting.radiance_files import read_environment
from runtime.errors import UserError

# Of a light that circles about the scene.
ELEVATION = math.radians(45)


def frame_lights(known, relight, num_frames, environment=None):
    """The `Lights [num_frames, K]` of a video.

    known: `Lights [N, K]` of the training pictures. relight: "none" (those of the first picture
    throughout), "light" (one, as strong and as far as theirs on the whole, goes round the scene
    once), or "environment" (it turns once; `environment` is the path of an equirectangular map, and
    if None the first picture's). Raises UserError where there is no environment to turn.
    """
    turns = [2 * math.pi * i / num_frames for i in range(num_frames)]
    if relight == "light":
        return stacked([turned(typical_light(known), turn) for turn in turns])
    if relight == "environment":
        shines = known.colours[0].sum(dim=-1) > 0
        if environment is None and not known.distant[0][shines].all():
            raise UserError("--relight environment has none to turn: the first training picture is "
                            "lit by points; give a map by --environment.")
        base = known[0] if environment is None else lights_of_map(environment)
        return stacked([turned(base, turn) for turn in turns])
    return stacked([known[0]] * num_frames)


def typical_light(known):
    """One white light `[1]` on the +x side, which lights the scene as the known ones typically do.

    It is as far away as they are, or distant like them.
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


def lights_of_map(path):
    """The lights of an equirectangular map of linear radiance."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--environment {path} is no file; give an equirectangular map (OpenEXR, "
                        "or PNG of 16 bits).")
    return environment_lights(read_environment(path))


def stacked(lights):
    """`Lights [F, K]` of F `Lights [K]`."""
    return Lights(**{name: torch.stack([getattr(each, name) for each in lights])
                     for name in ("places", "colours", "distant")})
