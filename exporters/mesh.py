"""Coloured meshes of a trained scene."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import coord
import image_utils
import pose_utils
from config import BY_NAME, shading_name
from exporters import isosurface
from exporters.isosurface import Grid, Isosurface
from exporters.survey import (
    SURVEY_RAYS,
    Survey,
    box_axes,
    box_ranges,
    choose_box,
    choose_threshold,
    density_at,
    grid_to_world,
    is_seen,
    survey_scene,
    viewing_directions,
    world_to_grid,
)
from exporters.tsdf import SURFACE, fused_occupancy, render_distances
from models.base import RayModel
from ray_utils import footprint_radius, reached_box
from rendering import Renderer, build_occupancy, make_renderer
from runtime.errors import UserError
from runtime.run_folder import as_name
from structures import Rays, Scene, Shading

# Number of grid cells behind the visible surface that still count as seen.
SLACK_IN_CELLS = 2.0

# Half the length, in grid cells, of the rays that colour a surface: fused or decimated ones are not
# exactly where the density is.
COLOUR_REACH_IN_CELLS = 4.0

# Number of faces of a mesh with a texture, if --faces does not give another.
TEXTURED_FACES = 50_000

# A component is kept if a corner of it differs by more than this from the background, in [0, 1].
MIN_CONTRAST = 0.1


class Mesh(NamedTuple):
    """A mesh in the world of the cameras.

    vertices: `[V, 3]`; faces: `[F, 3]`; cell_sizes: `[V]`, the size of a grid cell at each vertex;
    colours: `[V, 3]` sRGB values in [0, 1], or None before they are known; roughness: `[V]` of a
    relightable model's surface, else None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    cell_sizes: np.ndarray
    colours: np.ndarray | None = None
    roughness: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Mesh":
        """The mesh of the faces selected by a bool `[F]`, and of the vertices that they use."""
        faces, used = isosurface.select_faces(self.faces, keep)
        vertices, _, *attributes = self
        return Mesh(vertices[used], faces, *(x if x is None else x[used] for x in attributes))


# Extraction.


class Target(NamedTuple):
    """The surface to extract: where `density` equals `threshold` on a grid.

    survey: of the scene; low, high: corners `[3]` of the bounding box that the grid covers;
    density: maps points `[M, 3]` to `[M]`. All are in the coordinates of rays.
    renderer: for the colours; method: of the flag `--method`. With "tsdf" the density is that of
    `fused_occupancy`.
    """

    survey: Survey
    low: np.ndarray
    high: np.ndarray
    grid: Grid
    density: Callable[[np.ndarray], np.ndarray]
    threshold: float
    renderer: Renderer
    method: str


def find_target(model: RayModel, scene: Scene, config: Any) -> Target:
    """Estimate the bounding box, and the density threshold or the fused distances of `--method`.

    Both come from rendering the training cameras; flags override box and threshold. scene: that
    of the training views, on the model's device. Raises UserError if no ray hits a surface, or
    for an empty range.
    """
    occupancy = build_occupancy(model, reached_box(scene), SURVEY_RAYS)
    survey = survey_scene(model, scene, chunk=config.chunk, occupancy=occupancy)
    low, high = choose_box(config, survey, scene)
    grid = isosurface.make_grid(low, high, config.grid_size)
    renderer = make_renderer(model, scene, config.exact)
    if config.method == "tsdf":
        maps = render_distances(renderer, scene, **render_options(config))
        density, threshold = fused_occupancy(maps, grid.cell_size, scene.cameras.ndc), SURFACE
    else:
        density = density_at(model, survey, grid.cell_size, config.chunk)
        threshold = choose_threshold(config, survey, density)
    return Target(survey, low, high, grid, density, threshold, renderer, config.method)


def render_options(config: Any) -> dict[str, Any]:
    """The options of `Renderer.render` in a config."""
    return {"chunk": config.chunk, "shading": Shading.from_config(config)}


def extract(scene: Scene, config: Any, target: Target) -> tuple[Mesh, dict]:
    """The coloured `Mesh` of a target, and the content of `mesh.json`.

    scene: as for `find_target`. Unless `--keep_unseen`, surfaces that no training view sees and
    components of the background's colour are removed. Raises UserError if nothing is left.
    """
    shape, surface = find_shape(scene, config, target)
    mesh = finish(shape, scene, config, target)
    return mesh, summary(mesh, surface, target)


def find_shape(scene: Scene, config: Any, target: Target) -> tuple[Mesh, Isosurface]:
    """The `Mesh` of a target with all its faces and without colours, and its `Isosurface`.

    Arguments and errors as for `extract`.
    """
    surface = find_surface(target, scene.cameras.ndc, config.keep_unseen)
    mesh = to_world(surface, target.grid.cell_size, scene.cameras.ndc)
    mesh = cut_to_ranges(mesh, config, scene)
    check_not_empty(mesh, surface, "there is no surface", target)
    if not config.keep_unseen:
        mesh = remove_unseen(mesh, target.survey)
        check_not_empty(mesh, surface, "no training view sees the surface", target)
    return remove_small_components(mesh, config.min_component), surface


def finish(shape: Mesh, scene: Scene, config: Any, target: Target) -> Mesh:
    """The mesh of a shape with as many faces as flags request, its colours, and no background."""
    count = faces_of(config)
    mesh = decimate(shape, count, target.grid.cell_size, scene.cameras.ndc) if count else shape
    mesh = colour_vertices(mesh, target, scene, **render_options(config))
    return mesh if config.keep_unseen else remove_background(mesh, scene.background)


def find_surface(target: Target, ndc: tuple | None, keep_unseen: bool) -> Isosurface:
    """The isosurface of a target, evaluated only where training views see, unless `keep_unseen`."""
    def visible(points: np.ndarray, radius: float) -> np.ndarray:
        return is_seen(target.survey, *grid_to_world(points, radius, ndc))

    return isosurface.isosurface(
        target.density, target.grid, target.threshold, target.survey.points.cpu().numpy(),
        None if keep_unseen else visible)


def summary(mesh: Mesh, surface: Isosurface, target: Target) -> dict:
    """The content of `mesh.json`; lengths are in the coordinates of rays."""
    threshold = target.threshold if target.method == "density" else None
    return {
        "method": target.method, "sigma_threshold": threshold,
        "box": [target.low.tolist(), target.high.tolist()],
        "grid": target.grid.shape, "step_of_grid": target.grid.cell_size,
        "evaluated": surface.num_evaluated,
        "evaluated_share": surface.num_evaluated / math.prod(target.grid.shape),
        "vertices": len(mesh.vertices), "faces": len(mesh.faces),
    }


def check_not_empty(mesh: Mesh, surface: Isosurface, problem: str, target: Target) -> None:
    """Raise UserError for a mesh without faces; `problem` begins the message."""
    if not len(mesh.faces) and target.method == "tsdf":
        raise UserError(f"{problem} of the fused distances in the bounding box; set the box by "
                        "--x_range, --y_range and --z_range, or give --method density.")
    if not len(mesh.faces):
        low, high = surface.density_range
        raise UserError(f"{problem} of density {target.threshold:.3g} in the bounding box, where "
                        f"densities range from {low:.3g} to {high:.3g}; set --sigma_threshold, or "
                        "the box by --x_range, --y_range and --z_range.")


def to_world(surface: Isosurface, cell_size: float, ndc: tuple | None) -> Mesh:
    """An `Isosurface` as a `Mesh`. ndc: of `Cameras`."""
    vertices, cell_sizes = grid_to_world(surface.vertices, cell_size, ndc)
    # NDC mirrors the world, since its z grows with depth.
    return Mesh(vertices, surface.faces if ndc is None else surface.faces[:, ::-1], cell_sizes)


# Removal of parts.


def cut_to_ranges(mesh: Mesh, config: Any, scene: Scene) -> Mesh:
    """Keep the faces inside the ranges of `--units file`, whose box is turned in the scene's."""
    if config.units == "scene":
        return mesh
    inside = np.ones(len(mesh.vertices), bool)
    vertices = pose_utils.transform_points(mesh.vertices, np.linalg.inv(box_axes(config, scene)))
    for axis, ends in enumerate(box_ranges(config).values()):
        if ends is not None:
            inside &= (vertices[:, axis] >= ends[0]) & (vertices[:, axis] <= ends[1])
    return mesh.select(inside[mesh.faces].all(axis=1))


def remove_unseen(mesh: Mesh, survey: Survey) -> Mesh:
    """Keep the faces of which a training view sees a corner, and from outside.

    Behind the edges of objects fused distances have a second surface, which faces away.
    """
    seen = is_seen(survey, mesh.vertices, SLACK_IN_CELLS * mesh.cell_sizes, vertex_normals(mesh))
    return mesh.select(seen[mesh.faces].any(axis=1))


def remove_small_components(mesh: Mesh, fraction: float) -> Mesh:
    """Keep connected components with at least this fraction of the faces of the largest one."""
    component = isosurface.component_of_faces(len(mesh.vertices), mesh.faces)
    sizes = np.bincount(component)
    return mesh.select(sizes[component] >= fraction * sizes.max())


def remove_background(mesh: Mesh, background: float) -> Mesh:
    """Remove components of the background's colour, which images cannot tell from empty space.

    A mesh that consists of such components only is returned as it is.
    """
    component = isosurface.component_of_faces(len(mesh.vertices), mesh.faces)
    contrast = np.abs(mesh.colours[mesh.faces] - background).max(axis=(1, 2))
    max_contrast = np.zeros(component.max() + 1)
    np.maximum.at(max_contrast, component, contrast)
    keep = max_contrast[component] > MIN_CONTRAST
    return mesh.select(keep) if keep.any() else mesh


# Decimation.


def faces_of(config: Any) -> int | None:
    """`--faces`; a texture needs few faces if it is not given, since each chart has a border."""
    return config.faces or (TEXTURED_FACES if config.texture else None)


def import_simplification() -> Any:
    """The package fast-simplification. Raises UserError if it is not installed."""
    try:
        import fast_simplification
    except ImportError:
        raise UserError("--faces and --texture need the package fast-simplification; install it by "
                        "`pip install fast-simplification`, or all of the extra by `pip install "
                        "\".[mesh]\"`.") from None
    return fast_simplification


def decimate(mesh: Mesh, count: int, cell_size: float, ndc: tuple | None) -> Mesh:
    """The mesh without colours, with about `count` faces; unchanged if it has no more.

    Edges collapse in the order of the error that this makes (quadric error metrics, Garland and
    Heckbert 1997). Errors are measured in the coordinates of rays, whose cells have one size;
    cell_size: in them; ndc: of `Cameras`. Raises UserError if fast-simplification is not installed.
    """
    if len(mesh.faces) <= count:
        return mesh
    fast_simplification = import_simplification()
    points = world_to_grid(mesh.vertices, ndc)
    low, high = points.min(axis=0), points.max(axis=0)
    points, faces = fast_simplification.simplify(
        ((points - low) / cell_size).astype(np.float32), mesh.faces.astype(np.int32),
        target_count=count)
    # In NDC, a corner that moves a little beyond the box may lie at infinity.
    vertices, cell_sizes = grid_to_world(
        np.clip(low + cell_size * points.astype(np.float64), low, high), cell_size, ndc)
    is_triangle = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return Mesh(vertices, faces, cell_sizes).select(is_triangle)


# Colours.


class Appearance(NamedTuple):
    """Colours `[M, 3]`, sRGB values in [0, 1], and a relightable model's roughness `[M]` or None.
    """

    colours: np.ndarray
    roughness: np.ndarray | None


class SurfacePoints(NamedTuple):
    """M points of a mesh, unit directions in which they are viewed `[M, 3]`, sizes `[M]` of cells.
    """

    positions: np.ndarray
    viewdirs: np.ndarray
    cell_sizes: np.ndarray


def colour_vertices(mesh: Mesh, target: Target, scene: Scene, **options: Any) -> Mesh:
    """The mesh with colours (`surface_appearance`). options: of `Renderer.render`."""
    appearance = surface_appearance(surface_points(mesh, target), target, scene, **options)
    return mesh._replace(**appearance._asdict())


def surface_points(mesh: Mesh, target: Target) -> SurfacePoints:
    """The vertices of a mesh, viewed as the training views look at them (`viewing_directions`)."""
    viewdirs = viewing_directions(target.survey, mesh.vertices, vertex_normals(mesh),
                                  SLACK_IN_CELLS * mesh.cell_sizes)
    return SurfacePoints(mesh.vertices, viewdirs.cpu().numpy(), mesh.cell_sizes)


def surface_appearance(points: SurfacePoints, target: Target, scene: Scene,
                       **options: Any) -> Appearance:
    """The `Appearance` of a surface: that of short rays through its points (`surface_rays`).

    A relightable model gives its albedo and roughness. options: of `Renderer.render`.
    """
    rays = surface_rays(points, target, scene.cameras.ndc)
    output = target.renderer.render(scene.light_rays(rays, 0), **options)
    opacity = output.acc[:, None].clamp(min=1e-3)
    if "albedo" in output.extras:
        albedo, roughness = ((output.extras[name] / opacity).clamp(0, 1)
                             for name in ("albedo", "roughness"))
        return Appearance(image_utils.linear_to_srgb(albedo).cpu().numpy(),
                          roughness[:, 0].cpu().numpy())
    # Subtract the background before dividing by opacity.
    premultiplied = output.rgb - (1 - output.acc[:, None]) * scene.background
    return Appearance((premultiplied / opacity).clamp(0, 1).cpu().numpy(), None)


def surface_rays(points: SurfacePoints, target: Target, ndc: tuple | None) -> Rays:
    """Rays `[M]` that pass the points at t = 1.5, in their viewing directions.

    t runs from 1 to 2. It starts at 1, and not at 0, because samples may be spaced in 1 / t.
    """
    survey, ray_shape = target.survey, target.renderer.model.ray_shape
    positions, viewdirs, cells = (
        torch.as_tensor(x, dtype=torch.float32, device=survey.points.device) for x in points)
    reach = COLOUR_REACH_IN_CELLS * cells[:, None] * viewdirs
    start, end = positions - reach, positions + reach
    if ndc is not None:
        start, end = coord.points_to_ndc(start, *ndc), coord.points_to_ndc(end, *ndc)
    directions = end - start
    one = torch.ones_like(directions[:, :1])
    return Rays(
        origins=start - directions, directions=directions, near=one, far=2 * one, lossmult=one,
        viewdirs=viewdirs,
        radii=survey.radius / float(footprint_radius(1.0, torch.tensor(1.5), ray_shape)) * one,
        cam_idx=torch.zeros_like(one, dtype=torch.long),
    )


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """Outward unit normals `[V, 3]`: means of the normals of adjacent faces, weighted by area."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    sums = np.zeros_like(mesh.vertices)
    for corner in range(3):
        np.add.at(sums, mesh.faces[:, corner], face_normals)
    return unit(sums)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., 3]` of length 1; 0 stays 0."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


# Names.


def folder_name(run: Any) -> str:
    """The name of a mesh's folder, which contains every flag that changes the mesh.

    run: a `Checkpoint`.
    """
    config = run.config
    name = f"mesh_{run.step:08d}_{config.grid_size}{shading_name(config, run.saved_config)}"
    if config.method != "density":
        name += f"_{config.method}"
    if config.sigma_threshold is not None:
        name += f"_sigma{as_name(config.sigma_threshold)}"
    for axis, ends in box_ranges(config).items():
        if ends is not None:
            name += f"_{axis}{as_name(ends[0])}to{as_name(ends[1])}"
    if config.units == "file":
        name += "_file"
    if config.keep_unseen:
        name += "_unseen"
    if config.exact:
        name += "_exact"
    if config.faces:
        name += f"_faces{config.faces}"
    if config.texture:
        name += f"_texture{config.texture}"
    if config.min_component != BY_NAME["min_component"].default:
        name += f"_pieces{as_name(config.min_component)}"
    return name
