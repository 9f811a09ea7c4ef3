"""One HTML file that holds a trained hash grid and renders it in a browser, by WebGL 2.

The page runs the march of fields/march.py in a fragment shader. Table entries are stored in 8 bits
with a scale per level, weights in float32, everything compressed; nothing is loaded from outside.
"""

import base64
import html
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import pose_utils
from cameras.paths import central_pose, frame_intrinsics, summarize_cameras
from exporters.mesh_views import representative_view
from fields.hash_grid import PRIMES
from fields.march import DirectionTerms, Marcher, MarchOptions, PackedField
from fields.occupancy import MarchGrid
from models.base import RayModel
from models.zipnerf import ZipNeRF
from ray_utils import RADIUS_PER_PIXEL
from rendering import make_marcher
from runtime.errors import UserError
from structures import Cameras, Scene

SOURCES = Path(__file__).parent / "page_source"

# Texels per row of the textures.
TABLE_WIDTH, PARAMS_WIDTH = 4096, 1024

# Entries are clipped at one of these quantiles of a level's magnitudes, whichever costs least.
CLIP_QUANTILES = (0.999, 0.9999, 1.0)
LARGEST_BYTE = 127

# Sides of matrices are multiples of this.
ALIGNMENT = 8


class QuantisedTable(NamedTuple):
    """A table in 8 bits: int8 `[entries, C]`, whose columns beyond the features are 0.

    scales: `[L]`, the value of the largest byte at each level; error: the root mean square error,
    relative to the root mean square of the entries.
    """

    values: ndarray
    scales: list[float]
    error: float


class Page(NamedTuple):
    """A page: its HTML, and the error of its table, see `QuantisedTable`."""

    text: str
    table_error: float


def make_page(model: RayModel, scene: Scene, title: str) -> Page:
    """The page of a trained model.

    scene: of the training views, on the model's device, a CPU. Raises UserError for a model that
    the page cannot render.
    """
    check_supported(model)
    return page_of_march(make_marcher(model, scene), scene.cameras, title)


def page_of_march(marcher: Marcher, cameras: Cameras, title: str) -> Page:
    """The page that marches as `marcher` does; cameras: of the training views."""
    field = marcher.packed
    table = quantise(field.table, field.sizes)
    weight, bias = padded_terms(marcher.directions)
    params, weight_at, bias_at = join_params(field.params, weight, bias)
    layout, data = join_arrays({"params": params, "table": to_texture(table.values, TABLE_WIDTH),
                                "skip": marcher.grid.skip.numpy()})
    constants = [
        *field_constants(field, table), *options_constants(marcher.options),
        *grid_constants(marcher.grid), *ray_constants(cameras),
        glsl("TABLE_WIDTH", TABLE_WIDTH), glsl("PARAMS_WIDTH", PARAMS_WIDTH),
        *map(glsl, ("TERMS", "TERMS_WEIGHT", "TERMS_BIAS", "DIRECTION_INPUTS", "VIEW_DEG"),
             (len(bias), weight_at, bias_at, weight.shape[1], marcher.directions.view_deg))]
    header = {"arrays": layout, "widths": {"table": TABLE_WIDTH, "params": PARAMS_WIDTH},
              "channels": min(4, table.values.shape[1]),
              "grid": len(marcher.grid.skip), "constants": "\n".join(constants),
              "camera": start_camera(cameras)}
    text = fill_template(title, header, base64.b64encode(zlib.compress(data, 9)).decode())
    return Page(text, table.error)


def check_supported(model: RayModel) -> None:
    """Raise UserError unless the page can render a model."""
    if not isinstance(model, ZipNeRF):
        raise UserError("--format html was given, but the page renders hash grids alone: train "
                        "--model zipnerf, or make a video by visualize.py (networks are too slow "
                        "in a browser, and a NeRV needs its lights).")
    if model.field.num_multisamples > 1:
        raise UserError("--format html was given, but this run has --num_multisamples "
                        f"{model.field.num_multisamples}, and the page takes one Gaussian per "
                        "interval; train with --num_multisamples 1, as preset laptop does.")


# Arrays.


def quantise(table: ndarray, sizes: ndarray) -> QuantisedTable:
    """The `QuantisedTable` of float entries `[entries, F]`; sizes: entries of each level."""
    features = table.shape[1]
    channels = features if features in (1, 2) else features + -features % 4
    values = np.zeros((len(table), channels), dtype=np.int8)
    scales, squared_error, first = [], 0.0, 0
    for size in sizes.tolist():
        level = table[first : first + size]
        scale, quantised = quantise_level(level)
        values[first : first + size, :features] = quantised
        squared_error += float(((quantised * (scale / LARGEST_BYTE) - level) ** 2).sum())
        scales.append(scale)
        first += size
    error = (squared_error / max(float((table.astype(np.float64) ** 2).sum()), 1e-30)) ** 0.5
    return QuantisedTable(values, scales, error)


def quantise_level(level: ndarray) -> tuple[float, ndarray]:
    """The scale of a level, and its entries as int8."""
    best: tuple[float, float, ndarray] | None = None
    magnitudes = np.abs(level)
    for quantile in CLIP_QUANTILES:
        scale = max(float(np.quantile(magnitudes, quantile)), 1e-12)
        steps = np.rint(level * (LARGEST_BYTE / scale))
        quantised = np.clip(steps, -LARGEST_BYTE, LARGEST_BYTE).astype(np.int8)
        error = float(((quantised * (scale / LARGEST_BYTE) - level) ** 2).sum())
        if best is None or error < best[0]:
            best = error, scale, quantised
    return best[1:]


def padded_terms(directions: DirectionTerms) -> tuple[Tensor, Tensor]:
    """Weight and bias of `DirectionTerms` with columns padded to a multiple of 4."""
    weight = directions.weight
    missing = -weight.shape[1] % 4 if weight.numel() else 4 - weight.shape[1]
    padding = weight.new_zeros(len(weight), missing)
    return torch.cat([weight, padding], dim=1), directions.bias


def join_params(params: ndarray, weight: Tensor, bias: Tensor) -> tuple[ndarray, int, int]:
    """The parameters with those of directions behind them, and where these begin."""
    parts = [params, weight.detach().numpy().ravel(), bias.detach().numpy()]
    parts = [np.pad(part, (0, -len(part) % ALIGNMENT)) for part in parts]
    joined = np.concatenate(parts).astype(np.float32).reshape(-1, 4)
    return to_texture(joined, PARAMS_WIDTH), len(parts[0]), len(parts[0]) + len(parts[1])


def to_texture(values: ndarray, width: int) -> ndarray:
    """Rows of numbers as texels, with empty ones that complete the last row of the texture."""
    channels = min(4, values.shape[1])
    texels = values.reshape(-1, channels)
    return np.pad(texels, ((0, -len(texels) % width), (0, 0)))


def join_arrays(arrays: dict[str, ndarray]) -> tuple[dict[str, dict[str, int]], bytes]:
    """The bytes of all arrays, aligned to 4, and where each lies in them."""
    layout, data = {}, bytearray()
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).tobytes()
        layout[name] = {"offset": len(data), "bytes": len(content)}
        data += content + bytes(-len(content) % 4)
    return layout, bytes(data)


# What the shader knows.


def grid_constants(grid: MarchGrid) -> list[str]:
    """The cube that the grid covers."""
    return [glsl("GRID", len(grid.skip)), glsl("SIDE", float(grid.side)),
            glsl("CONTRACTION", bool(grid.contraction)),
            glsl_vector("CENTRE", grid.centre.tolist())]


def ray_constants(cameras: Cameras) -> list[str]:
    """The range of t, and the map to NDC (focal length, width and height) if there is one."""
    ndc = (1.0, 1.0, 1.0) if cameras.ndc is None else cameras.ndc[:3]
    return [glsl("NEAR", float(cameras.near.min())), glsl("FAR", float(cameras.far.max())),
            glsl("RADIUS_PER_PIXEL", RADIUS_PER_PIXEL),
            glsl("IS_NDC", cameras.ndc is not None), glsl_vector("NDC", [float(x) for x in ndc])]


def field_constants(field: PackedField, table: QuantisedTable) -> list[str]:
    """Sizes and offsets of a field's levels and layers."""
    width = max(field.num_features, field.width)
    return [
        glsl("WIDTH", width), glsl("FEATURES", field.table.shape[1]),
        glsl("TEXELS", -(-table.values.shape[1] // 4)), glsl("LEVELS", len(field.sizes)),
        glsl("DOWNWEIGHT", bool(field.downweight)), glsl("APPEND_SCALE", bool(field.append_scale)),
        glsl_array("RESOLUTIONS", field.resolutions.tolist()),
        glsl_array("OFFSETS", field.offsets.tolist()), glsl_array("SIZES", field.sizes.tolist()),
        glsl_array("SCALES", table.scales), glsl("TRUNK_LAYERS", len(field.trunk)),
        glsl_array("TRUNK", field.trunk.ravel().tolist()),
        glsl("COLOUR_LAYERS", len(field.colour)),
        glsl_array("COLOUR", field.colour.ravel().tolist()),
        glsl("DENSITY_ROWS", int(field.density[0])), glsl("DENSITY_OFFSET", int(field.density[2])),
        glsl("DENSITY_BIAS", int(field.density[3])),
        f"const uint PRIME_Y = {PRIMES[1]}u, PRIME_Z = {PRIMES[2]}u;",
    ]


def options_constants(options: MarchOptions) -> list[str]:
    """The options of the march by the names in the shader."""
    return [glsl(name.upper(), value) for name, value in options._asdict().items()]


def glsl(name: str, value: bool | int | float) -> str:
    """A constant of GLSL."""
    if isinstance(value, bool):
        return f"const bool {name} = {str(value).lower()};"
    return f"const {'int' if isinstance(value, int) else 'float'} {name} = {literal(value)};"


def glsl_array(name: str, values: list) -> str:
    """A constant array of GLSL, of int or float."""
    kind = "float" if isinstance(values[0], float) else "int"
    return (f"const {kind} {name}[{len(values)}] = {kind}[{len(values)}]("
            f"{', '.join(map(literal, values))});")


def glsl_vector(name: str, values: list[float]) -> str:
    """A constant vec3 of GLSL."""
    return f"const vec3 {name} = vec3({', '.join(map(literal, values))});"


def literal(value: int | float) -> str:
    """A number as GLSL spells it: floats have a point or an exponent."""
    return str(value) if isinstance(value, int) else f"{value:.9e}"


# What the script knows.


def start_camera(cameras: Cameras) -> dict[str, Any]:
    """The first view: pose, focal length in widths of the image, what it turns about, and up."""
    layout = summarize_cameras(cameras)
    camtoworlds = cameras.camtoworlds.double().cpu().numpy()
    index = representative_view(cameras)
    pose = central_pose(layout)[0] if layout.forward_facing else camtoworlds[index]
    (width, height), pixtocams = frame_intrinsics(cameras, None, None, np.ones(1))
    right, above, back, position = pose[:3].T.tolist()
    distance = layout.distance or float(np.mean([layout.near, layout.far]))
    forward = -np.asarray(back)
    depth = float((layout.focus - position) @ forward) if layout.distance else distance
    focus = np.asarray(position) + max(depth, 0.1 * distance) * forward
    return {"position": position, "right": right, "above": above, "back": back,
            "focus": focus.tolist(), "up": pose_utils.up_direction(camtoworlds).tolist(),
            "focal": float(1 / pixtocams[0, 0, 0] / width), "aspect": width / height}


def fill_template(title: str, header: dict, data: str) -> str:
    """The page with its parts in place."""
    parts = {
        "TITLE": html.escape(title), "STYLE": read_source("style.css"),
        "MARCH": read_source("march.glsl"), "SHOW": read_source("show.glsl"),
        "SCRIPT": read_source("page.js"), "HEADER": json.dumps(header), "DATA": data,
    }
    text = read_source("page.html")
    for name, part in parts.items():
        text = text.replace(f"//{name}//", part)
    return text


def read_source(name: str) -> str:
    """A file of the page's sources."""
    return (SOURCES / name).read_text().strip()
