"""The demo scene under known lights: an exact ray tracer with shadows and one bounce.

Renders images and ground truth (albedo, normals, roughness, visibility) for relighting methods. The
BRDF and the convention of environment maps are implemented here independently of relighting/, so
that tests can compare the two.

World: z up. Radiance is linear. Vectors have their components last, [..., 3]. The colour of a point
light is its radiant intensity I (the irradiance at distance r is I / r²), that of a distant light
is radiance times solid angle.
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
from torch import Tensor

from procedural.scene import (
    BLENDER_ANGLE_X,
    NUM_BLENDER_VIEWS,
    TEST_EVERY,
    blender_cameras,
    pinhole,
)
from procedural.still_life import STILL_LIFE
from procedural.tracing import intersect, material, occluded, pixel_rays
from runtime.files import new_folder

# Reflectance at normal incidence, of dielectrics.
F0 = 0.04

LUMINANCE = (0.2126, 0.7152, 0.0722)

# Rays start this far along the normal, so that they miss their own surface.
SURFACE_OFFSET = 1e-4

# Side of the images in pixels: rendering them takes minutes.
LIT_SIZE = 100

# Samples: rays per pixel and axis, indirect directions per ray, distant lights per ray.
SUPERSAMPLE = 3
NUM_BOUNCES = 8
NUM_LIGHT_SAMPLES = 16

# Pixels rendered at once.
PIXELS_PER_BAND = 1 << 12

# Steps of a three-dimensional low-discrepancy sequence: powers of 1 / x, where x⁴ = x + 1.
EVEN_STEPS = (0.8191725134, 0.6710436067, 0.5497004779)

# A white Lambertian surface that faces a light from the origin has radiance 1.7.
LIGHT_DISTANCE = 4.0
LIGHT_INTENSITY = 90.0

# Texels of an environment map, (height, width).
ENVIRONMENT_SHAPE = (12, 24)


class SceneLights(NamedTuple):
    """K lights of one kind.

    positions: [..., K, 3], or unit directions if `distant`; axes before K are those of the points.
    colours: [..., K, 3].
    Nothing may lie beyond a point light: it would cast a shadow, too.
    """

    positions: Tensor
    colours: Tensor
    distant: bool


class Patch(NamedTuple):
    """Surface at N points: `point`, unit outward `normal`, `albedo` [N, 3], `roughness` [N, 1].

    eye: [N, 3], unit direction to the viewer.
    """

    point: Tensor
    normal: Tensor
    albedo: Tensor
    roughness: Tensor
    eye: Tensor


class Traced(NamedTuple):
    """Radiance and surface along rays [...]; zero where `hit` [...] is False.

    direct, indirect: [..., 3], radiance; albedo, normal: [..., 3]; roughness: [..., 1].
    visibility: [..., 1], the fraction of the sampled lights that illuminate the surface.
    """

    hit: Tensor
    direct: Tensor
    indirect: Tensor
    albedo: Tensor
    normal: Tensor
    roughness: Tensor
    visibility: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product [..., 1]."""
    x, y, z = (a * b).split(1, dim=-1)  # `sum` over such a short axis takes five times as long.
    return x + y + z


def _normalize(v: Tensor) -> Tensor:
    """Vectors of length 1; zero vectors stay zero."""
    return v * _dot(v, v).clamp_min(1e-24).rsqrt()


# Reflectance and lights.


def reference_brdf(normal, wi, wo, albedo, roughness) -> Tensor:
    """BRDF [..., 3] per steradian: GGX over Lambert; zero unless wi and wo are above the surface.

    normal, wi (to the light), wo (to the viewer): unit vectors [..., 3]; albedo: [..., 3];
    roughness: [..., 1], the square root of GGX's alpha.
    """
    half = _normalize(wi + wo)
    cos_i, cos_o = _dot(normal, wi), _dot(normal, wo)
    alpha_squared, k = (roughness**2) ** 2, roughness**2 / 2
    ndf = alpha_squared / (math.pi * (_dot(normal, half) ** 2 * (alpha_squared - 1) + 1) ** 2)
    # The cosines of G's numerator cancel those of the denominator 4 cos_i cos_o.
    ndf_times_g = ndf / (4 * (cos_i * (1 - k) + k) * (cos_o * (1 - k) + k))
    # Diffuse light is transmitted into the surface and out of it.
    transmitted = (1 - _fresnel(cos_i)) * (1 - _fresnel(cos_o))
    reflected = _fresnel(_dot(wi, half)) * ndf_times_g + transmitted * albedo / math.pi
    return torch.where((cos_i > 0) & (cos_o > 0), reflected, 0.0)


def _fresnel(cosine: Tensor) -> Tensor:
    """Schlick's approximation of the fraction of light that is reflected specularly."""
    return F0 + (1 - F0) * (1 - cosine) ** 5


def environment_texels(environment, turn: float = 0.0) -> tuple[Tensor, Tensor]:
    """Unit directions [H W, 3] of an environment map's texels; radiance times solid angle [H W, 3].

    environment: [H, W, 3], an equirectangular panorama viewed from inside: row 0 is the zenith, the
    centre faces +x, its right faces −y. turn: rotation of the map about +z in radians.
    """
    environment = torch.as_tensor(environment, dtype=torch.float32)
    height, width, _ = environment.shape
    theta = (torch.arange(height)[:, None] + 0.5) / height * math.pi
    phi = (0.5 - (torch.arange(width) + 0.5) / width) * 2 * math.pi + turn
    xyz = (theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos().expand(height, width))
    solid_angle = theta.sin() * (math.pi / height) * (2 * math.pi / width)
    return torch.stack(xyz, -1).reshape(-1, 3), (environment * solid_angle[..., None]).flatten(0, 1)


def point_light(position, intensity: float = LIGHT_INTENSITY) -> SceneLights:
    """One white point light at `position` [3]."""
    position = torch.as_tensor(position, dtype=torch.float32)[None]
    return SceneLights(position, torch.full((1, 3), intensity), distant=False)


def sample_lights(lights: SceneLights, u: Tensor) -> SceneLights:
    """S of the K `lights` for each of N points, sampled by luminance and reweighted (unbiased).

    u: [N, S], uniform in [0, 1).
    """
    probability = lights.colours.double() @ torch.tensor(LUMINANCE, dtype=torch.float64)
    probability = probability / probability.sum()
    # Float32 may round to 1, past the last light.
    u = u.double().clamp_max(1 - 1e-9)
    index = torch.searchsorted(probability.cumsum(0), u, right=True)
    colours = (lights.colours / (u.shape[1] * probability[:, None])).to(lights.colours)
    return SceneLights(lights.positions[index], colours[index], lights.distant)


# Light transport.


def _patch_brdf(patch: Patch, row: Tensor, wi: Tensor) -> Tensor:
    """The BRDF [M, 3] at the points `row` [M] of a patch, for light from `wi` [M, 3]."""
    _, normal, albedo, roughness, eye = (field.index_select(0, row) for field in patch)
    return reference_brdf(normal, wi, eye, albedo, roughness)


def direct(patch: Patch, lights: SceneLights, parts=STILL_LIFE) -> tuple[Tensor, Tensor]:
    """Reflected direct light of `lights`: radiance [N, 3] to the viewer.

    Also, which of the lights illuminate each point: bool [N, K].
    """
    point = patch.point[:, None]
    offset = lights.positions.expand(len(point), -1, 3)
    offset = offset if lights.distant else offset - point
    squared = _dot(offset, offset)
    visible = _dot(patch.normal[:, None], offset)[..., 0] > 0
    row, column = visible.nonzero().T
    start = patch.point + SURFACE_OFFSET * patch.normal
    unblocked = ~occluded(start[row], offset[row, column], parts)
    row, column = row[unblocked], column[unblocked]
    visible = torch.zeros_like(visible).index_put((row, column), torch.tensor(True))
    wi = offset[row, column] * squared[row, column].rsqrt()
    light = lights.colours.expand(offset.shape)[row, column]
    light = light if lights.distant else light / squared[row, column]
    reflected = _patch_brdf(patch, row, wi) * _dot(patch.normal[row], wi) * light
    return torch.zeros_like(patch.point).index_add(0, row, reflected), visible


def _first_patch(origins, directions, parts) -> tuple[Tensor, Patch]:
    """Which rays [..., 3] hit, bool [...], and the `Patch` of the N points that they hit."""
    surface = intersect(origins, directions, parts)
    hit = surface.part >= 0
    surface = surface._make(field[hit] for field in surface)
    albedo, gloss, _ = material(surface, parts)
    eye = -_normalize(directions[hit])
    return hit, Patch(surface.point, surface.normal, albedo, 1 - 0.6 * gloss[:, None], eye)


def _cosine_directions(normal: Tensor, u: Tensor) -> Tensor:
    """Cosine-distributed unit directions [..., 3] about `normal` [..., 3], from u [..., 2]."""
    z, phi = 1 - 2 * u[..., :1], 2 * math.pi * u[..., 1:]
    across = (1 - z * z).clamp_min(0).sqrt()
    sphere = torch.cat([across * phi.cos(), across * phi.sin(), z], -1)
    return _normalize(normal + sphere)


def indirect(patch: Patch, lights: SceneLights, u: Tensor, parts=STILL_LIFE) -> Tensor:
    """Reflected indirect light of one bounce: radiance [N, 3] to the viewer.

    u: [N, B, 3] in [0, 1); two numbers for each of B directions and one to sample a distant light.
    """
    wi = _cosine_directions(patch.normal[:, None], u[..., :2])
    start = (patch.point + SURFACE_OFFSET * patch.normal)[:, None].expand_as(wi)
    hit, other = _first_patch(start, wi, parts)
    sampled = sample_lights(lights, u[hit][:, 2:]) if lights.distant else lights
    incident, _ = direct(other, sampled, parts)
    row = hit.nonzero()[:, 0]
    weight = _patch_brdf(patch, row, wi[hit]) * (math.pi / u.shape[1])
    return torch.zeros_like(patch.point).index_add(0, row, weight * incident)


def trace_camera_rays(origins, directions, lights: SceneLights, shifts: Tensor,
                      parts=STILL_LIFE) -> Traced:
    """Trace S camera rays for each of P pixels. Distant lights are sampled for each ray.

    origins: [3]; directions: [P, S, 3].
    shifts: [P, 4], uniform in [0, 1): offsets of the low-discrepancy pattern of a pixel's rays.
    There is no other randomness.
    """
    num_rays = directions.shape[1]
    hit, patch = _first_patch(origins, directions, parts)
    pixel, ray = hit.nonzero().T
    shift, ray = shifts[pixel][:, None], ray[:, None]
    steps = ray * NUM_BOUNCES + torch.arange(NUM_BOUNCES)
    u = (shift[..., :3] + steps[..., None] * shift.new_tensor(EVEN_STEPS)) % 1
    sampled = lights
    if lights.distant:
        within = (shift[..., 3] + ray / num_rays) % 1
        strata = (torch.arange(NUM_LIGHT_SAMPLES) + within) / NUM_LIGHT_SAMPLES
        sampled = sample_lights(lights, strata)
    direct_light, visible = direct(patch, sampled, parts)
    visibility = visible.to(direct_light).mean(1, keepdim=True)
    fields = (direct_light, indirect(patch, lights, u, parts), patch.albedo, patch.normal,
              patch.roughness, visibility)
    return Traced(hit, *(field.new_zeros(*hit.shape, field.shape[-1]).index_put((hit,), field)
                       for field in fields))


# Images.


def _sample_rays(camtoworld, pixtocam, width: int, height: int):
    """Origin [3] and directions [height width, SUPERSAMPLE², 3] of the pixels' rays, float32."""
    inside = (np.arange(SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    y, x, v, u = np.meshgrid(np.arange(height), np.arange(width), inside, inside, indexing="ij")
    origin, directions = pixel_rays(camtoworld, pixtocam, x + u, y + v)
    return origin.float(), directions.reshape(height * width, -1, 3).float()


def render_lit(
    camtoworld, pixtocam, width: int, height: int, lights: SceneLights, seed: int, parts=STILL_LIFE
) -> dict[str, np.ndarray]:
    """An image and its ground truth, float32, by name; equal seeds give equal values.

    `rgba` [height, width, 4]: linear radiance premultiplied by alpha, which is coverage. The ground
    truth is averaged over the covered part of a pixel and 0 without one: `albedo` and unit
    `normals` [height, width, 3], `roughness` and (for a point light) `visibility` [height, width].
    """
    origin, directions = _sample_rays(camtoworld, pixtocam, width, height)
    shifts = torch.rand(len(directions), 4, generator=torch.Generator().manual_seed(seed))
    bands = zip(directions.split(PIXELS_PER_BAND), shifts.split(PIXELS_PER_BAND), strict=True)
    traced = [trace_camera_rays(origin, rays, lights, shift, parts) for rays, shift in bands]
    traced = Traced._make(torch.cat(field) for field in zip(*traced, strict=True))
    covered = traced.hit.float().sum(1, keepdim=True)
    rgba = torch.cat([(traced.direct + traced.indirect).mean(1), covered / SUPERSAMPLE**2], -1)
    albedo, normals, roughness, visibility = (
        field.sum(1) / covered.clamp_min(1) for field in traced[3:]
    )
    out = {"rgba": rgba, "albedo": albedo, "normals": _normalize(normals),
           "roughness": roughness[:, 0]}
    if not lights.distant:
        out["visibility"] = visibility[:, 0]
    return {name: field.reshape(height, width, *field.shape[1:]).numpy()
            for name, field in out.items()}


def light_positions(split: str) -> np.ndarray:
    """Positions [N, 3] of the point lights of a split, "train" or "test", in random order.

    The lights are evenly distributed on a spiral from 20° to 80° above the horizon; every fourth is
    a test light.
    """
    i = np.arange(NUM_BLENDER_VIEWS)
    z = np.interp(i, (0, NUM_BLENDER_VIEWS - 1), np.sin(np.radians((80, 20))))
    angle, across = i * math.pi * (3 - math.sqrt(5)), np.sqrt(1 - z**2)
    chosen = (i % TEST_EVERY == TEST_EVERY // 2) == (split == "test")
    xyz = np.stack([np.cos(angle) * across, np.sin(angle) * across, z], -1)[chosen]
    return LIGHT_DISTANCE * np.random.default_rng(0).permutation(xyz)


# Environment maps of each split, as arguments of `paint_environment`.
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


def paint_environment(zenith, horizon, ground, sun, sun_direction, glow,
                      glow_direction) -> np.ndarray:
    """An environment map [H, W, 3], float16: a gradient, a sun, and a wide glow on another side.

    Arguments are RGB radiances, and directions [3].
    """
    height, width = ENVIRONMENT_SHAPE
    directions = environment_texels(np.zeros((height, width, 3)))[0].double().numpy()
    z = directions[:, 2:]
    sky = np.array(horizon) + np.sqrt(abs(z)) * np.subtract(zenith, horizon)
    painted = np.where(z > 0, sky, ground)
    for colour, towards, sharpness in ((sun, sun_direction, 30), (glow, glow_direction, 4)):
        cosine = directions @ towards / np.linalg.norm(towards)
        painted += np.exp(sharpness * (cosine[:, None] - 1)) * colour
    return painted.reshape(height, width, 3).astype(np.float16)


# Files.


def write_exr(path: Path, image: np.ndarray) -> None:
    """Write an image [H, W, 3 or 4] as half floats."""
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {"RGBA"[: image.shape[-1]]: np.ascontiguousarray(image, np.float16)}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def _write_ground_truth(stem: Path, rendered: dict[str, np.ndarray]) -> None:
    """Write `stem`_<name>.png, 8 bits, for albedo (straight alpha), normals and other ground truth.
    """
    alpha = rendered["rgba"][..., 3:]
    ground_truth = {"albedo": np.concatenate([rendered["albedo"], alpha], -1),
                    "normals": (rendered["normals"] + 1) / 2}
    ground_truth |= {name: rendered[name] for name in ("roughness", "visibility")
                     if name in rendered}
    for name, values in ground_truth.items():
        pixels = np.rint(255 * values).astype(np.uint8)
        imageio.imwrite(stem.with_name(f"{stem.name}_{name}.png"), pixels)


def _point_views(split: str, limit: int | None) -> Iterator[tuple[dict, SceneLights]]:
    """The JSON entry and the lights of each view, under a point light."""
    cameras = blender_cameras(split)[0][:limit]
    for camtoworld, position in zip(cameras, light_positions(split), strict=False):
        frame = {"light_loc": position.tolist(), "light_weights": [[1.0, 1.0, 1.0]]}
        yield {"transform_matrix": camtoworld.tolist()} | frame, point_light(position)


def _environment_views(split: str, limit: int | None) -> Iterator[tuple[dict, SceneLights]]:
    """The JSON entry and the lights of each view: the skies in turn, with random rotations."""
    skies = SKIES[split]
    cameras = blender_cameras(split)[0][:limit]
    turns = np.random.default_rng(len(skies)).uniform(0, 2 * math.pi, len(cameras))
    for camtoworld, name, turn in zip(cameras, cycle(skies), turns, strict=False):
        frame = {"environment": f"./environments/{name}.exr", "environment_turn": turn}
        texels = environment_texels(paint_environment(*skies[name]), turn)
        lights = SceneLights(*texels, distant=True)
        yield {"transform_matrix": camtoworld.tolist()} | frame, lights


def _write_views(folder: Path, split: str, views, size: int, **top) -> None:
    """Write images, the ground truth of test images, and the JSON with `top` as further entries."""
    (folder / split).mkdir(parents=True)
    pixtocam = pinhole(size, size, size / 2 / math.tan(BLENDER_ANGLE_X / 2))
    frames = []
    for i, (frame, lights) in enumerate(views):
        rendered = render_lit(frame["transform_matrix"], pixtocam, size, size, lights, seed=i)
        stem = folder / split / f"r_{i:03d}"
        write_exr(stem.with_suffix(".exr"), rendered["rgba"])
        if split == "test":
            _write_ground_truth(stem, rendered)
        frames.append({"file_path": f"./{split}/{stem.name}"} | frame)
    meta = {"camera_angle_x": BLENDER_ANGLE_X} | top | {"frames": frames}
    (folder / f"transforms_{split}.json").write_text(json.dumps(meta, indent=2))


def write_nerv(folder: str | Path, size: int = LIT_SIZE, limit: int | None = None) -> None:
    """Write the lit scene in NeRV's format, unless `folder` exists.

    Each set has at most `limit` views of `size`² pixels: 60 in train_point and train_env, 20 in
    test (whose JSON is in `folder` itself) and test_env.
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
                write_exr(environment_set / "environments" / f"{name}.exr", paint_environment(*sky))
