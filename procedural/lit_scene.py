"""The demo scene under known lights: an exact ray tracer with shadows and one bounce.

Pictures and truths (albedo, normals, roughness, visibility) for relighting methods. The reflectance
and the environments' convention are written here on their own, so that a method's can be compared
with them.

World: z up. Radiance is linear. Vectors have their components last, [..., 3]; a point light's
colour is its radiant intensity (I / distance² arrives), a distant light's is radiance times solid
angle.
"""

import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import torch

from procedural import scene as demo_scene
from procedural.scene import (
    BLENDER_ANGLE_X,
    BLENDER_SIZE,
    NUM_BLENDER_VIEWS,
    STILL_LIFE,
    TEST_EVERY,
)
from runtime.files import new_folder

F0 = 0.04

LUMINANCE = (0.2126, 0.7152, 0.0722)

OFF_SURFACE = 1e-4  # How far along the normal rays start, so that they miss their own surface.

SUPERSAMPLE = 3

NUM_BOUNCES = 8

NUM_CHOSEN = 16

PIXELS_PER_BAND = 1 << 12

# Multiples of these, modulo 1, fill the unit cube evenly: powers of 1 / x, where x⁴ = x + 1.
EVEN_STEPS = (0.8191725134, 0.6710436067, 0.5497004779)

LIGHT_DISTANCE = 4.0

LIGHT_INTENSITY = 90.0  # A white matt surface that faces a light at the origin: radiance 1.7.

ENVIRONMENT_SHAPE = (12, 24)


class Lights(NamedTuple):
    """K lights: at `positions` [..., K, 3], or if `distant` in those unit directions.

    `colours` [..., K, 3]. Axes before K are those of the points that are lit. Nothing of the scene
    may lie beyond a light: it would cast a shadow too.
    """

    positions: torch.Tensor
    colours: torch.Tensor
    distant: bool


class Patch(NamedTuple):
    """Surface at N points: `point`, unit outward `normal`, `albedo` [N, 3], `roughness` [N, 1].

    `eye` [N, 3] is the unit direction to where it is seen from.
    """

    point: torch.Tensor
    normal: torch.Tensor
    albedo: torch.Tensor
    roughness: torch.Tensor
    eye: torch.Tensor


class Traced(NamedTuple):
    """What rays [...] see; zero where `hit` [...] is False.

    Radiance `direct`, `indirect` [..., 3]; `albedo`, `normal` [..., 3], `roughness` [..., 1];
    `visibility` [..., 1]: the part of the lights looked at that is above the surface and unshaded.
    """

    hit: torch.Tensor
    direct: torch.Tensor
    indirect: torch.Tensor
    albedo: torch.Tensor
    normal: torch.Tensor
    roughness: torch.Tensor
    visibility: torch.Tensor


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x, y, z = (a * b).split(1, dim=-1)  # A sum over so short an axis takes five times as long.
    return x + y + z


def _unit(v: torch.Tensor) -> torch.Tensor:
    return v * _dot(v, v).clamp_min(1e-24).rsqrt()


def brdf(normal, wi, wo, albedo, roughness) -> torch.Tensor:
    """Reflectance [..., 3] per steradian: GGX over Lambert, zero unless both directions are above.

    Unit vectors `normal`, `wi` (to the light), `wo` (to the eye) and `albedo` [..., 3];
    `roughness` [..., 1], the square root of GGX's alpha.
    """
    half = _unit(wi + wo)
    cos_i, cos_o = _dot(normal, wi), _dot(normal, wo)
    alpha_squared, k = (roughness**2) ** 2, roughness**2 / 2
    facets = alpha_squared / (math.pi * (_dot(normal, half) ** 2 * (alpha_squared - 1) + 1) ** 2)
    # G's numerator and the denominator 4 cos_i cos_o have their cosines in common.
    seen_facets = facets / (4 * (cos_i * (1 - k) + k) * (cos_o * (1 - k) + k))
    # What is let in is what is not mirrored on the way in, nor on the way out.
    let_in = (1 - _fresnel(cos_i)) * (1 - _fresnel(cos_o))
    reflected = _fresnel(_dot(wi, half)) * seen_facets + let_in * albedo / math.pi
    return torch.where((cos_i > 0) & (cos_o > 0), reflected, 0.0)


def _fresnel(cosine: torch.Tensor) -> torch.Tensor:
    """Schlick's share of light that is mirrored."""
    return F0 + (1 - F0) * (1 - cosine) ** 5


def environment_lights(environment, turn: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit directions [H W, 3] of an environment's texels, and radiance times solid angle [H W, 3].

    `environment` [H, W, 3] is an equirectangular panorama seen from inside: row 0 is the zenith,
    the middle looks along +x, its right towards −y. It is turned by `turn` radians about +z.
    """
    environment = torch.as_tensor(environment, dtype=torch.float32)
    height, width, _ = environment.shape
    theta = (torch.arange(height)[:, None] + 0.5) / height * math.pi
    phi = (0.5 - (torch.arange(width) + 0.5) / width) * 2 * math.pi + turn
    xyz = (theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos().expand(height, width))
    solid_angle = theta.sin() * (math.pi / height) * (2 * math.pi / width)
    return torch.stack(xyz, -1).reshape(-1, 3), (environment * solid_angle[..., None]).flatten(0, 1)


def point_light(position, intensity: float = LIGHT_INTENSITY) -> Lights:
    """One white point light at `position` [3]."""
    position = torch.as_tensor(position, dtype=torch.float32)[None]
    return Lights(position, torch.full((1, 3), intensity), distant=False)


def choose_lights(lights: Lights, where: torch.Tensor) -> Lights:
    """S of the K `lights` for each of N points, which on average light them like all.

    `where` [N, S], in [0, 1), picks with a probability in proportion to luminance.
    """
    share = lights.colours.double() @ torch.tensor(LUMINANCE, dtype=torch.float64)
    share = share / share.sum()
    # Single precision rounds up to 1 what should be below, where no light may be left to choose.
    where = where.double().clamp_max(1 - 1e-9)
    index = torch.searchsorted(share.cumsum(0), where, right=True)
    colours = (lights.colours / (where.shape[1] * share[:, None])).to(lights.colours)
    return Lights(lights.positions[index], colours[index], lights.distant)


def _reflectance(patch: Patch, row: torch.Tensor, wi: torch.Tensor) -> torch.Tensor:
    """The patch's reflectance [M, 3] at its points `row` [M] for light from `wi` [M, 3]."""
    _, normal, albedo, roughness, eye = (field.index_select(0, row) for field in patch)
    return brdf(normal, wi, eye, albedo, roughness)


def direct(patch: Patch, lights: Lights, parts=STILL_LIFE) -> tuple[torch.Tensor, torch.Tensor]:
    """Radiance [N, 3] to the eye of light that arrives straight from `lights`, and which of them
    arrive [N, K]."""
    point = patch.point[:, None]
    offset = lights.positions.expand(len(point), -1, 3)
    offset = offset if lights.distant else offset - point
    squared = _dot(offset, offset)
    arrive = _dot(patch.normal[:, None], offset)[..., 0] > 0
    row, column = arrive.nonzero().T
    start = patch.point + OFF_SURFACE * patch.normal
    free = ~demo_scene.occluded(start[row], offset[row, column], parts)
    row, column = row[free], column[free]
    arrive = torch.zeros_like(arrive).index_put((row, column), torch.tensor(True))
    wi = offset[row, column] * squared[row, column].rsqrt()
    light = lights.colours.expand(offset.shape)[row, column]
    light = light if lights.distant else light / squared[row, column]
    reflected = _reflectance(patch, row, wi) * _dot(patch.normal[row], wi) * light
    return torch.zeros_like(patch.point).index_add(0, row, reflected), arrive


def _first_patch(origins, directions, parts) -> tuple[torch.Tensor, Patch]:
    """Where rays [..., 3] hit: bool [...] and the N surface points they hit."""
    surface = demo_scene.intersect(origins, directions, parts)
    hit = surface.part >= 0
    surface = surface._make(field[hit] for field in surface)
    of = demo_scene.material(surface, parts)
    eye = -_unit(directions[hit])
    return hit, Patch(surface.point, surface.normal, of.albedo, 1 - 0.6 * of.gloss[:, None], eye)


def _cosine_directions(normal: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Unit directions [..., 3] about `normal` [..., 3], as dense as their cosine; `u` [..., 2]."""
    z, phi = 1 - 2 * u[..., :1], 2 * math.pi * u[..., 1:]
    across = (1 - z * z).clamp_min(0).sqrt()
    sphere = torch.cat([across * phi.cos(), across * phi.sin(), z], -1)
    return _unit(normal + sphere)


def indirect(patch: Patch, lights: Lights, u: torch.Tensor, parts=STILL_LIFE) -> torch.Tensor:
    """Radiance [N, 3] to the eye of light that reaches the patch by one other surface.

    `u` [N, B, 3] in [0, 1): two numbers for each of B directions, one to choose a distant light.
    """
    wi = _cosine_directions(patch.normal[:, None], u[..., :2])
    start = (patch.point + OFF_SURFACE * patch.normal)[:, None].expand_as(wi)
    hit, other = _first_patch(start, wi, parts)
    chosen = choose_lights(lights, u[hit][:, 2:]) if lights.distant else lights
    there, _ = direct(other, chosen, parts)
    row = hit.nonzero()[:, 0]
    weight = _reflectance(patch, row, wi[hit]) * (math.pi / u.shape[1])
    return torch.zeros_like(patch.point).index_add(0, row, weight * there)


def radiance(origins, directions, lights: Lights, shifts: torch.Tensor, parts=STILL_LIFE) -> Traced:
    """What camera rays see. Of distant lights, some are drawn for each ray.

    `origins` [3] and `directions` [P, S, 3] of S rays of each of P pixels; `shifts` [P, 4], uniform
    in [0, 1), is all that is random: it moves an even pattern of samples that a pixel's rays share.
    """
    num_rays = directions.shape[1]
    hit, patch = _first_patch(origins, directions, parts)
    pixel, ray = hit.nonzero().T
    shift, ray = shifts[pixel][:, None], ray[:, None]
    steps = ray * NUM_BOUNCES + torch.arange(NUM_BOUNCES)
    u = (shift[..., :3] + steps[..., None] * shift.new_tensor(EVEN_STEPS)) % 1
    chosen = lights
    if lights.distant:
        within = (shift[..., 3] + ray / num_rays) % 1
        chosen = choose_lights(lights, (torch.arange(NUM_CHOSEN) + within) / NUM_CHOSEN)
    straight, arrive = direct(patch, chosen, parts)
    visibility = arrive.to(straight).mean(1, keepdim=True)
    fields = (straight, indirect(patch, lights, u, parts), patch.albedo, patch.normal,
              patch.roughness, visibility)
    return Traced(hit, *(field.new_zeros(*hit.shape, field.shape[-1]).index_put((hit,), field)
                       for field in fields))


def _sample_rays(camtoworld, pixtocam, width: int, height: int):
    """Origin [3] and directions [height width, SUPERSAMPLE², 3] of the pixels' rays, float32."""
    inside = (np.arange(SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    y, x, v, u = np.meshgrid(np.arange(height), np.arange(width), inside, inside, indexing="ij")
    origin, directions = demo_scene.pixel_rays(camtoworld, pixtocam, x + u, y + v)
    return origin.float(), directions.reshape(height * width, -1, 3).float()


def render_lit(
    camtoworld, pixtocam, width: int, height: int, lights: Lights, seed: int, parts=STILL_LIFE
) -> dict[str, np.ndarray]:
    """Picture and truths, float32; the same for the same `seed`.

    `rgba` [height, width, 4]: linear radiance premultiplied by alpha = coverage. Truths are means
    over a pixel's covered part, zero where there is none: `albedo`, unit `normals` [height, width,
    3], `roughness` and, under a point light, its `visibility` [height, width].
    """
    origin, directions = _sample_rays(camtoworld, pixtocam, width, height)
    shifts = torch.rand(len(directions), 4, generator=torch.Generator().manual_seed(seed))
    bands = zip(directions.split(PIXELS_PER_BAND), shifts.split(PIXELS_PER_BAND), strict=True)
    seen = [radiance(origin, rays, lights, shift, parts) for rays, shift in bands]
    seen = Traced._make(torch.cat(field) for field in zip(*seen, strict=True))
    covered = seen.hit.float().sum(1, keepdim=True)
    rgba = torch.cat([(seen.direct + seen.indirect).mean(1), covered / SUPERSAMPLE**2], -1)
    albedo, normals, roughness, visibility = (
        field.sum(1) / covered.clamp_min(1) for field in seen[3:]
    )
    out = {"rgba": rgba, "albedo": albedo, "normals": _unit(normals),
           "roughness": roughness[:, 0]}
    if not lights.distant:
        out["visibility"] = visibility[:, 0]
    return {name: field.reshape(height, width, *field.shape[1:]).numpy()
            for name, field in out.items()}


def light_positions(split: str) -> np.ndarray:
    """Point lights [N, 3] of the views of `split`, "train" or "test", in no order.

    A spiral evenly over 20° to 80° above the horizon; every fourth is a test light.
    """
    i = np.arange(NUM_BLENDER_VIEWS)
    z = np.interp(i, (0, NUM_BLENDER_VIEWS - 1), np.sin(np.radians((80, 20))))
    turn, across = i * math.pi * (3 - math.sqrt(5)), np.sqrt(1 - z**2)
    chosen = (i % TEST_EVERY == TEST_EVERY // 2) == (split == "test")
    xyz = np.stack([np.cos(turn) * across, np.sin(turn) * across, z], -1)[chosen]
    return LIGHT_DISTANCE * np.random.default_rng(0).permutation(xyz)


# What `paint` needs for the environments of training, and for the one that is held out.
SKIES = {
    "train": {
        "noon": ((0.25, 0.45, 0.90), (0.70, 0.80, 0.95), (0.18, 0.16, 0.12),
                 (16.0, 14.5, 12.5), (0.53, 0.0, 0.85), (0.5, 0.5, 0.3), (-0.75, 0.43, 0.5)),
        "evening": ((0.16, 0.20, 0.50), (0.75, 0.45, 0.40), (0.10, 0.08, 0.10),
                    (22.0, 10.5, 4.5), (0.91, 0.0, 0.41), (0.2, 0.5, 1.6), (-0.85, 0.15, 0.5)),
        "grove": ((0.45, 0.60, 0.35), (0.30, 0.55, 0.30), (0.14, 0.12, 0.06),
                  (11.0, 12.5, 8.5), (0.74, 0.0, 0.67), (1.4, 0.5, 0.9), (-0.30, -0.81, 0.5)),
    },
    "test": {
        "held_out": ((0.40, 0.35, 0.55), (0.80, 0.65, 0.60), (0.14, 0.12, 0.14),
                     (17.0, 13.0, 10.0), (0.81, 0.0, 0.59), (0.3, 1.0, 0.9), (-0.43, 0.75, 0.5)),
    },
}


def paint(zenith, horizon, ground, sun, sun_direction, glow, glow_direction) -> np.ndarray:
    """An environment [H, W, 3], float16: a gradient, a sun and a wide glow on another side.

    RGB radiances, and directions [3].
    """
    height, width = ENVIRONMENT_SHAPE
    directions = environment_lights(np.zeros((height, width, 3)))[0].double().numpy()
    z = directions[:, 2:]
    sky = np.array(horizon) + np.sqrt(abs(z)) * np.subtract(zenith, horizon)
    painted = np.where(z > 0, sky, ground)
    for colour, towards, sharpness in ((sun, sun_direction, 30), (glow, glow_direction, 4)):
        cosine = directions @ towards / np.linalg.norm(towards)
        painted += np.exp(sharpness * (cosine[:, None] - 1)) * colour
    return painted.reshape(height, width, 3).astype(np.float16)


def _write_exr(path: Path, picture: np.ndarray) -> None:
    """`picture` [H, W, 3 or 4] as half floats."""
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {"RGBA"[: picture.shape[-1]]: np.ascontiguousarray(picture, np.float16)}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def _write_truths(stem: Path, rendered: dict[str, np.ndarray]) -> None:
    """What a picture shows as 8-bit PNG files: `stem`_albedo.png, straight alpha, and so on."""
    alpha = rendered["rgba"][..., 3:]
    truths = {"albedo": np.concatenate([rendered["albedo"], alpha], -1),
              "normals": (rendered["normals"] + 1) / 2}
    truths |= {name: rendered[name] for name in ("roughness", "visibility") if name in rendered}
    for name, truth in truths.items():
        pixels = np.rint(255 * truth).astype(np.uint8)
        imageio.imwrite(stem.with_name(f"{stem.name}_{name}.png"), pixels)


def _point_views(split: str, limit: int | None) -> Iterator[tuple[dict, Lights]]:
    """What the JSON tells of a frame, and its lights."""
    cameras = demo_scene.blender_cameras(split)[0][:limit]
    for camtoworld, position in zip(cameras, light_positions(split), strict=False):
        frame = {"light_loc": position.tolist(), "light_weights": [[1.0, 1.0, 1.0]]}
        yield {"transform_matrix": camtoworld.tolist()} | frame, point_light(position)


def _environment_views(split: str, limit: int | None) -> Iterator[tuple[dict, Lights]]:
    """Like `_point_views`: the skies in turn, each time turned otherwise."""
    skies = SKIES[split]
    cameras = demo_scene.blender_cameras(split)[0][:limit]
    turns = np.random.default_rng(len(skies)).uniform(0, 2 * math.pi, len(cameras))
    for camtoworld, name, turn in zip(cameras, cycle(skies), turns, strict=False):
        frame = {"environment": f"./environments/{name}.exr", "environment_turn": turn}
        lights = Lights(*environment_lights(paint(*skies[name]), turn), distant=True)
        yield {"transform_matrix": camtoworld.tolist()} | frame, lights


def _write_views(folder: Path, split: str, views, size: int, **top) -> None:
    """Pictures of `views`, test pictures with their truths, and the JSON, where `top` is on top."""
    (folder / split).mkdir(parents=True)
    pixtocam = demo_scene.pinhole(size, size, size / 2 / math.tan(BLENDER_ANGLE_X / 2))
    frames = []
    for i, (frame, lights) in enumerate(views):
        rendered = render_lit(frame["transform_matrix"], pixtocam, size, size, lights, seed=i)
        stem = folder / split / f"r_{i:03d}"
        _write_exr(stem.with_suffix(".exr"), rendered["rgba"])
        if split == "test":
            _write_truths(stem, rendered)
        frames.append({"file_path": f"./{split}/{stem.name}"} | frame)
    meta = {"camera_angle_x": BLENDER_ANGLE_X} | top | {"frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(meta, indent=2))


def write_nerv(folder: str | Path, size: int = BLENDER_SIZE, limit: int | None = None) -> None:
    """Write the lit scene in the format of NeRV's, unless `folder` exists.

    Each set has `limit` views at most, of `size`² pixels: 60 in train_point and train_env, 20 in
    test (whose JSON lies in `folder` itself) and test_env.
    """
    folder = Path(folder)
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        for split, point_set in (("train", "train_point"), ("test", "")):
            views = _point_views(split, limit)
            _write_views(unfinished / point_set, split, views, size,
                         light_intensity=LIGHT_INTENSITY)
            environment_set = unfinished / f"{split}_env"
            _write_views(environment_set, split, _environment_views(split, limit), size)
            (environment_set / "environments").mkdir()
            for name, sky in SKIES[split].items():
                _write_exr(environment_set / "environments" / f"{name}.exr", paint(*sky))
