"""Coloured meshes of a trained scene."""

import math
from typing import NamedTuple

import numpy as np
import torch
import trimesh

import coord
import image_utils
import pose_utils
from config import shading_name
from datasets import load_dataset
from exporters import isosurface
from exporters.survey import (
    SURVEY_RAYS,
    choose_box,
    choose_threshold,
    density_at,
    is_seen,
    ranges,
    survey_scene,
    to_world,
)
from ray_utils import image_rays, points_to_pixels, reached_box
from rendering import build_occupancy, render_image
from runtime.devices import select_device
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.run_folder import as_name
from structures import Rays

# How many steps of the grid behind the surface that a training view sees count as seen.
SLACK = 2.0

# Half the length, in grid steps, of the rays that colour the vertices.
COLOUR_REACH = 2.0

# A piece shows when some corner of it differs by more than this from the background, in [0, 1].
CONTRAST = 0.1

# The picture of the mesh is at most so many pixels wide or high; it is drawn so many times as
# large, and made smaller.
PICTURE_SIDE = 800

OVERSAMPLING = 2


def extract(model, scene, config):
    """The coloured `Mesh` of a model and a `dict` of how it was found.

    scene: the training views' `Scene`, on the model's device. Raises UserError where there is no
    surface.
    """
    ndc = scene.cameras.ndc
    occupancy = build_occupancy(model, reached_box(scene), SURVEY_RAYS)
    survey = survey_scene(model, scene, config.chunk, occupancy)
    low, high = choose_box(config, survey, scene.box.cpu())
    grid = isosurface.make_grid(low, high, config.grid_size)
    density = density_at(model, survey, grid.step, config.chunk)
    threshold = choose_threshold(config, survey, density)
    print(f"Surface of density {threshold:.3g} between {low.round(3)} and {high.round(3)}, on "
          f"{'x'.join(map(str, grid.shape))} points {grid.step:.3g} apart.", flush=True)

    def visible(points, distance):
        return is_seen(survey, *to_world(points, distance, ndc))

    surface = isosurface.isosurface(density, grid, threshold, survey.points.cpu().numpy(),
                                    None if config.keep_unseen else visible)
    share = surface.num_evaluated / math.prod(grid.shape)
    print(f"{surface.num_evaluated:,} points evaluated, {share:.1%} of the grid.", flush=True)
    mesh = in_world(surface, grid.step, ndc)
    check_not_empty(mesh, surface, "there is no surface", threshold)
    if not config.keep_unseen:
        mesh = without_unseen(mesh, survey)
        check_not_empty(mesh, surface, "no training view sees the surface", threshold)
    mesh = without_small_pieces(mesh, config.min_component)
    mesh = coloured(mesh, model, survey, scene, config.chunk)
    if not config.keep_unseen:
        mesh = without_background(mesh, scene.background)
    return mesh, {
        "sigma_threshold": threshold, "box": [low.tolist(), high.tolist()], "grid": grid.shape,
        "step_of_grid": grid.step, "evaluated": surface.num_evaluated, "evaluated_share": share,
        "vertices": len(mesh.vertices), "faces": len(mesh.faces),
    }


class Mesh(NamedTuple):
    """vertices `[V, 3]` in the cameras' world; faces `[F, 3]`; steps `[V]`: how long a step of the
    grid is there; colours `[V, 3]` in [0, 1], None at first."""

    vertices: np.ndarray
    faces: np.ndarray
    steps: np.ndarray
    colours: np.ndarray | None = None

    def select(self, keep):
        """The chosen faces `[F]` and the vertices that they use."""
        faces, used = isosurface.select_faces(self.faces, keep)
        colours = None if self.colours is None else self.colours[used]
        return Mesh(self.vertices[used], faces, self.steps[used], colours)


def in_world(surface, step, ndc):
    """An `Isosurface` as a `Mesh`."""
    vertices, steps = to_world(surface.vertices, step, ndc)
    # NDC is a mirror image of the world: its z grows with depth.
    return Mesh(vertices, surface.faces if ndc is None else surface.faces[:, ::-1], steps)


def without_unseen(mesh, survey):
    """The faces of which some training view sees a corner."""
    seen = is_seen(survey, mesh.vertices, SLACK * mesh.steps)
    return mesh.select(seen[mesh.faces].any(axis=1))


def without_small_pieces(mesh, smallest):
    """The pieces with at least `smallest` times as many faces as the largest."""
    piece = isosurface.pieces(len(mesh.vertices), mesh.faces)
    sizes = np.bincount(piece)
    return mesh.select(sizes[piece] >= smallest * sizes.max())


def without_background(mesh, background):
    """The pieces that are not all of the background's colour: no picture tells these from nothing.

    A mesh that is nothing else is left as it is.
    """
    piece = isosurface.pieces(len(mesh.vertices), mesh.faces)
    contrast = np.abs(mesh.colours[mesh.faces] - background).max(axis=(1, 2))
    strongest = np.zeros(piece.max() + 1)
    np.maximum.at(strongest, piece, contrast)
    keep = strongest[piece] > CONTRAST
    return mesh.select(keep) if keep.any() else mesh


def check_not_empty(mesh, surface, what, threshold):
    """Raise UserError for a mesh without faces."""
    if not len(mesh.faces):
        low, high = surface.density_range
        raise UserError(f"{what} of density {threshold:.3g} in the box, where densities run from "
                        f"{low:.3g} to {high:.3g}; set --sigma_threshold, or the box by --x_range, "
                        "--y_range and --z_range.")


def coloured(mesh, model, survey, scene, chunk):
    """The mesh with the colours that short rays through its vertices, against the normals, see.

    Of a relightable model they are the albedo.
    """
    ndc = scene.cameras.ndc
    device = survey.points.device
    normals = vertex_normals(mesh)
    reach = COLOUR_REACH * mesh.steps[:, None] * normals
    ends = [torch.as_tensor(mesh.vertices + way * reach, dtype=torch.float32, device=device)
            for way in (1, -1)]
    if ndc is not None:
        ends = [coord.points_to_ndc(p, *ndc) for p in ends]
    directions = ends[1] - ends[0]
    one = torch.ones_like(directions[:, :1])
    # t runs from 1 to 2, so that samples may also be spaced by 1 / t.
    rays = Rays(
        origins=ends[0] - directions, directions=directions, near=one, far=2 * one, lossmult=one,
        viewdirs=torch.as_tensor(-normals, dtype=torch.float32, device=device),
        radii=survey.radius / (1.5 if model.ray_shape == "cone" else 1) * one,
        cam_idx=torch.zeros_like(one, dtype=torch.long),
    )
    output = render_image(model, scene.light_rays(rays, 0), chunk)
    # Of what little passes, the background's colour is no part of the surface's.
    opacity = output.acc[:, None].clamp(min=1e-3)
    seen = output.rgb - (1 - output.acc[:, None]) * scene.background
    colours = output.extras.get("albedo", seen) / opacity
    return mesh._replace(colours=colours.clamp(0, 1).cpu().numpy())


def vertex_normals(mesh):
    """Unit normals `[V, 3]` outward, each the mean of its faces' weighted by their areas."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    of_face = np.cross(b - a, c - a)
    summed = np.zeros_like(mesh.vertices)
    for corner in range(3):
        np.add.at(summed, mesh.faces[:, corner], of_face)
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-30)


def folder_name(run):
    """The name of the folder of a mesh, which tells all that makes it differ from others."""
    config = run.config
    name = f"mesh_{run.step:08d}_{config.grid_size}{shading_name(config, run.saved_config)}"
    if config.sigma_threshold is not None:
        name += f"_sigma{as_name(config.sigma_threshold)}"
    for axis, ends in ranges(config).items():
        if ends is not None:
            name += f"_{axis}{as_name(ends[0])}to{as_name(ends[1])}"
    if config.keep_unseen:
        name += "_unseen"
    if config.min_component != 0.01:
        name += f"_pieces{as_name(config.min_component)}"
    return name


def write_mesh(path, mesh, world_to_scene):
    """Write a mesh in the coordinates of the scene's files."""
    to_files = np.linalg.inv(world_to_scene.double().numpy())
    vertices = pose_utils.transform_points(mesh.vertices, to_files)
    result = trimesh.Trimesh(vertices, mesh.faces, process=False,
                             vertex_colors=image_utils.to_uint8(mesh.colours))
    content = result.export(file_type=path.suffix[1:])
    content = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda file: file.write(content))


def draw_beside_photograph(mesh, run, config):
    """The mesh in its colours and its normals, as one training camera sees it.

    Before them the photograph, where the data are there, else what the model renders.
    """
    cameras = run.scene["train"].cameras
    size = cameras.sizes.prod(dim=-1)
    largest = torch.nonzero(size == size.max())[:, 0]
    index = int(largest[len(largest) // 2])
    full = cameras.sizes[index].numpy()
    width, height = np.maximum(np.rint(full * min(1, PICTURE_SIDE / full.max())), 1).astype(int)
    points = torch.as_tensor(mesh.vertices, dtype=torch.float32)
    camera = torch.full((len(points),), index)
    pixels, depths = (x.numpy() for x in points_to_pixels(cameras, camera, points))
    drawn = isosurface.draw_mesh(
        pixels * (OVERSAMPLING * np.array([width, height]) / full), depths, mesh.faces,
        np.concatenate([mesh.colours, vertex_normals(mesh) * 0.5 + 0.5], axis=1),
        OVERSAMPLING * width, OVERSAMPLING * height,
    )
    row = [photograph(run, config, index), drawn[..., :3], drawn[..., 3:]]
    row = [image_utils.resize_area(image_utils.to_uint8(x), width, height) / 255 for x in row]
    return image_utils.contact_sheet([row])


def photograph(run, config, index):
    """A training picture `[h, w, 3]`, or what the model renders in its place, which is said."""
    try:
        dataset = load_dataset(config, "train", read_pixels=False)
        dataset.check_same_scene(run.scene)
        return dataset.image(index).rgb
    except UserError as error:
        print(f"The picture of the mesh has a rendering beside it, not the photograph: {error}")
    scene = run.scene["train"].to(select_device(config))
    rays = scene.light_rays(image_rays(scene.cameras, index), index)
    return render_image(run.model, rays, config.chunk).rgb
