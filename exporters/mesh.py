"""Coloured meshes of a trained scene."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import coord
import image_utils
import pose_utils
from config import BY_NAME, shading_name
from exporters import isosurface
from exporters.isosurface import Grid, Isosurface
from exporters.mesh_files import ply_bytes, with_offset
from exporters.survey import (
    SURVEY_RAYS,
    Survey,
    box_ranges,
    choose_box,
    choose_threshold,
    density_at,
    grid_to_world,
    is_seen,
    survey_scene,
)
from models.base import RayModel
from ray_utils import footprint_radius, points_to_pixels, reached_box
from rendering import Renderer, build_occupancy, make_renderer
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.run_folder import as_name
from structures import Cameras, Rays, Scene, Shading

# Number of grid cells behind the visible surface that still count as seen.
SLACK_IN_CELLS = 2.0

# Half the length, in grid cells, of the rays that colour the vertices.
COLOUR_REACH_IN_CELLS = 2.0

# A component is kept if a corner of it differs by more than this from the background, in [0, 1].
MIN_CONTRAST = 0.1

# Largest side of an image of the mesh, in pixels, and how many times larger it is rasterized.
VIEW_SIDE = 800
OVERSAMPLING = 2


class Mesh(NamedTuple):
    """A mesh in the world of the cameras.

    vertices: `[V, 3]`; faces: `[F, 3]`; cell_sizes: `[V]`, the size of a grid cell at each vertex;
    colours: `[V, 3]` in [0, 1], or None before they are known.
    """

    vertices: np.ndarray
    faces: np.ndarray
    cell_sizes: np.ndarray
    colours: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Mesh":
        """The mesh of the faces selected by a bool `[F]`, and of the vertices that they use."""
        faces, used = isosurface.select_faces(self.faces, keep)
        colours = None if self.colours is None else self.colours[used]
        return Mesh(self.vertices[used], faces, self.cell_sizes[used], colours)


# Extraction.


class Target(NamedTuple):
    """The surface to extract: where `density` equals `threshold` on a grid.

    low, high: corners `[3]` of the bounding box that the grid covers; density: maps points
    `[M, 3]` to `[M]`. All are in the coordinates of rays.
    """

    survey: Survey
    low: np.ndarray
    high: np.ndarray
    grid: Grid
    density: Callable[[np.ndarray], np.ndarray]
    threshold: float


def find_target(model: RayModel, scene: Scene, config: Any) -> Target:
    """Estimate bounding box and density threshold by rendering from the training cameras.

    scene: that of the training views, on the model's device. Flags override both estimates. Raises
    UserError if no ray hits a surface, or for an empty range.
    """
    occupancy = build_occupancy(model, reached_box(scene), SURVEY_RAYS)
    survey = survey_scene(model, scene, chunk=config.chunk, occupancy=occupancy)
    low, high = choose_box(config, survey, scene.box.cpu())
    grid = isosurface.make_grid(low, high, config.grid_size)
    density = density_at(model, survey, grid.cell_size, config.chunk)
    threshold = choose_threshold(config, survey, density)
    return Target(survey, low, high, grid, density, threshold)


def extract(model: RayModel, scene: Scene, config: Any, target: Target
            ) -> tuple[Mesh, dict]:
    """The coloured `Mesh` of a target, and the content of `mesh.json`.

    scene: as for `find_target`. Unless `--keep_unseen`, surfaces that no training view sees and
    components of the background's colour are removed. Raises UserError if nothing is left.
    """
    surface = find_surface(target, scene.cameras.ndc, config.keep_unseen)
    mesh = to_world(surface, target.grid.cell_size, scene.cameras.ndc)
    check_not_empty(mesh, surface, "there is no surface", target.threshold)
    if not config.keep_unseen:
        mesh = remove_unseen(mesh, target.survey)
        check_not_empty(mesh, surface, "no training view sees the surface", target.threshold)
    mesh = remove_small_components(mesh, config.min_component)
    renderer = make_renderer(model, scene, config.exact, len(mesh.vertices))
    mesh = colour_vertices(mesh, renderer, target.survey, scene, chunk=config.chunk,
                           shading=Shading.from_config(config))
    if not config.keep_unseen:
        mesh = remove_background(mesh, scene.background)
    return mesh, summary(mesh, surface, target)


def find_surface(target: Target, ndc: tuple | None, keep_unseen: bool) -> Isosurface:
    """The isosurface of a target, evaluated only where training views see, unless `keep_unseen`."""
    def visible(points: np.ndarray, radius: float) -> np.ndarray:
        return is_seen(target.survey, *grid_to_world(points, radius, ndc))

    return isosurface.isosurface(
        target.density, target.grid, target.threshold, target.survey.points.cpu().numpy(),
        None if keep_unseen else visible)


def summary(mesh: Mesh, surface: Isosurface, target: Target) -> dict:
    """The content of `mesh.json`; lengths are in the coordinates of rays."""
    return {
        "sigma_threshold": target.threshold, "box": [target.low.tolist(), target.high.tolist()],
        "grid": target.grid.shape, "step_of_grid": target.grid.cell_size,
        "evaluated": surface.num_evaluated,
        "evaluated_share": surface.num_evaluated / math.prod(target.grid.shape),
        "vertices": len(mesh.vertices), "faces": len(mesh.faces),
    }


def check_not_empty(mesh: Mesh, surface: Isosurface, problem: str, threshold: float) -> None:
    """Raise UserError for a mesh without faces; `problem` begins the message."""
    if not len(mesh.faces):
        low, high = surface.density_range
        raise UserError(f"{problem} of density {threshold:.3g} in the bounding box, where "
                        f"densities range from {low:.3g} to {high:.3g}; set --sigma_threshold, or "
                        "the box by --x_range, --y_range and --z_range.")


def to_world(surface: Isosurface, cell_size: float, ndc: tuple | None) -> Mesh:
    """An `Isosurface` as a `Mesh`. ndc: of `Cameras`."""
    vertices, cell_sizes = grid_to_world(surface.vertices, cell_size, ndc)
    # NDC mirrors the world, since its z grows with depth.
    return Mesh(vertices, surface.faces if ndc is None else surface.faces[:, ::-1], cell_sizes)


# Removal of parts.


def remove_unseen(mesh: Mesh, survey: Survey) -> Mesh:
    """Keep the faces of which a training view sees a corner."""
    seen = is_seen(survey, mesh.vertices, SLACK_IN_CELLS * mesh.cell_sizes)
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


# Colours.


def colour_vertices(mesh: Mesh, renderer: Renderer, survey: Survey, scene: Scene,
                    **render_options: Any) -> Mesh:
    """The mesh with colours: those of short rays through its vertices, against the normals.

    Colours of a relightable model are its albedo. render_options: of `Renderer.render`.
    """
    rays = vertex_rays(mesh, survey, scene.cameras.ndc, renderer.model.ray_shape)
    output = renderer.render(scene.light_rays(rays, 0), **render_options)
    # Subtract the background before dividing by opacity.
    opacity = output.acc[:, None].clamp(min=1e-3)
    premultiplied = output.rgb - (1 - output.acc[:, None]) * scene.background
    colours = output.extras.get("albedo", premultiplied) / opacity
    return mesh._replace(colours=colours.clamp(0, 1).cpu().numpy())


def vertex_rays(mesh: Mesh, survey: Survey, ndc: tuple | None, ray_shape: str) -> Rays:
    """Rays `[V]` towards the surface, against the normals, that pass the vertices at t = 1.5.

    t runs from 1 to 2. It starts at 1, and not at 0, because samples may be spaced in 1 / t.
    """
    normals = vertex_normals(mesh)
    reach = COLOUR_REACH_IN_CELLS * mesh.cell_sizes[:, None] * normals
    start, end = (
        torch.as_tensor(points, dtype=torch.float32, device=survey.points.device)
        for points in (mesh.vertices + reach, mesh.vertices - reach))
    if ndc is not None:
        start, end = coord.points_to_ndc(start, *ndc), coord.points_to_ndc(end, *ndc)
    directions = end - start
    one = torch.ones_like(directions[:, :1])
    return Rays(
        origins=start - directions, directions=directions, near=one, far=2 * one, lossmult=one,
        viewdirs=torch.as_tensor(-normals, dtype=torch.float32, device=one.device),
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
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)


# Files.


def folder_name(run: Any) -> str:
    """The name of a mesh's folder, which contains every flag that changes the mesh.

    run: a `Checkpoint`.
    """
    config = run.config
    name = f"mesh_{run.step:08d}_{config.grid_size}{shading_name(config, run.saved_config)}"
    if config.sigma_threshold is not None:
        name += f"_sigma{as_name(config.sigma_threshold)}"
    for axis, ends in box_ranges(config).items():
        if ends is not None:
            name += f"_{axis}{as_name(ends[0])}to{as_name(ends[1])}"
    if config.keep_unseen:
        name += "_unseen"
    if config.exact:
        name += "_exact"
    if config.min_component != BY_NAME["min_component"].default:
        name += f"_pieces{as_name(config.min_component)}"
    return name


def write_mesh(path: Path, mesh: Mesh, world_to_scene: Tensor) -> None:
    """Atomically write a mesh in the coordinates of the scene's files.

    path: with suffix .ply (64-bit numbers), .obj or .glb; world_to_scene: `[4, 4]` of
    `Scene`. Raises UserError if it cannot be written.
    """
    to_files = np.linalg.inv(world_to_scene.double().numpy())
    vertices = pose_utils.transform_points(mesh.vertices, to_files)
    colours = image_utils.to_uint8(mesh.colours)
    if path.suffix == ".ply":
        content = ply_bytes(vertices, mesh.faces, colours)
    else:
        content = with_offset(vertices, mesh.faces, colours, path.suffix[1:])
    write_atomically(path, lambda file: file.write(content))


# Images.


def representative_view(cameras: Cameras) -> int:
    """Index of the camera in the middle of those with the largest image."""
    num_pixels = cameras.sizes.prod(dim=-1)
    largest = torch.nonzero(num_pixels == num_pixels.max())[:, 0]
    return int(largest[len(largest) // 2])


def mesh_sheet(mesh: Mesh, cameras: Cameras, index: int, reference: Tensor) -> np.ndarray:
    """A camera's reference image `[h, w, 3]`, and the mesh in its colours and normals beside it."""
    full = cameras.sizes[index].numpy()
    width, height = np.maximum(np.rint(full * min(1, VIEW_SIDE / full.max())), 1).astype(int)
    points = torch.as_tensor(mesh.vertices, dtype=torch.float32)
    camera = torch.full((len(points),), index)
    pixels, depths = (x.numpy() for x in points_to_pixels(cameras, camera, points))
    image = isosurface.rasterize(
        pixels * (OVERSAMPLING * np.array([width, height]) / full), depths, mesh.faces,
        np.concatenate([mesh.colours, vertex_normals(mesh) * 0.5 + 0.5], axis=1),
        OVERSAMPLING * width, OVERSAMPLING * height,
    )
    row = [reference, image[..., :3], image[..., 3:]]
    row = [image_utils.resize_area(image_utils.to_uint8(x), width, height) / 255 for x in row]
    return image_utils.contact_sheet([row])
