"""Extract a coloured mesh from a trained scene.

    python extract_mesh.py --run log/blender_lego_mipnerf
    python extract_mesh.py --scene lego --grid_size 128 --mesh_format glb
    python extract_mesh.py --scene lego --sigma_threshold 20 --x_range -1 1 --keep_unseen

Needs a run folder and nothing else (the photograph beside the picture of the mesh is left out where
the data are not there). The mesh is in the coordinates of the scene's own files. Where the surface
lies, how dense it is, and what was never seen, is found out by looking from the training cameras.
"""

import json
import math
import time
from typing import NamedTuple

from config import (
    UserError,
    as_name,
    check_flags,
    run_script,
    shading_name,
)

if __name__ == "__main__":
    check_flags()

import numpy as np
import torch
import trimesh

import coord
import image_utils
import mesh_utils
import pose_utils
from camera_paths import look
from checkpoint import open_run
from datasets import load_dataset
from evaluate import world_distance
from file_utils import sole_writer, write_whole
from model import render_image, select_device
from ray_utils import Cameras, Rays, image_rays, pixels_to_rays, points_to_pixels
from scene_files import reached_box

# The training views look at the scene with this many rays in all, from this many of them.
SURVEY_RAYS = 1 << 16
SURVEY_VIEWS = 48

# The box leaves out this percentage of the surface points on each side, and adds this margin.
BOX_PERCENTILE = 0.5
BOX_MARGIN = 0.05

# Where at least this share of the surface points is within the cameras' circle, the others are
# surroundings.
ENCLOSED = 0.1

# Of the densities where training rays have lost half their light. Measured on the demo scene: a
# higher one thins what is seen, a lower one thickens it.
THRESHOLD_PERCENTILE = 10

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


def main(argv=None):
    run = open_run(argv)
    config = run.config
    folder = run.path.parent / folder_name(run)
    with sole_writer(folder, "extracting a mesh"):
        begin = time.perf_counter()
        mesh, facts = extract(run.model, run.scene["train"].to(select_device(config)), config)
        print(f"{len(mesh.vertices):,} vertices and {len(mesh.faces):,} faces, after "
              f"{time.perf_counter() - begin:.0f} s.", flush=True)
        file = folder / f"mesh.{config.mesh_format}"
        write_mesh(file, mesh, run.scene["train"].world_to_scene)
        note = json.dumps({"step": run.step} | facts).encode()
        write_whole(folder / "mesh.json", lambda file: file.write(note))
        print(f"Mesh: {file}", flush=True)
        image_utils.write_image(folder / "view.png", draw_beside_photograph(mesh, run, config))
        print(f"Its picture: {folder / 'view.png'}")
    return 0


def extract(model, scene, config):
    """The coloured `Mesh` of a model and a `dict` of how it was found.

    scene: the training views' `Scene`, on the model's device. Raises UserError where there is no
    surface.
    """
    ndc = scene.cameras.ndc
    model.skip_empty_space(reached_box(scene), SURVEY_RAYS)
    survey = look_around(model, scene, config.chunk)
    model.occupancy = None  # What follows is all about surfaces.
    low, high = choose_box(config, survey, scene.box.cpu())
    grid = mesh_utils.make_grid(low, high, config.grid_size)
    density = density_at(model, survey, grid.step, config.chunk)
    threshold = choose_threshold(config, survey, density)
    print(f"Surface of density {threshold:.3g} between {low.round(3)} and {high.round(3)}, on "
          f"{'x'.join(map(str, grid.shape))} points {grid.step:.3g} apart.", flush=True)

    def visible(points, distance):
        return is_seen(survey, *to_world(points, distance, ndc))

    surface = mesh_utils.isosurface(density, grid, threshold, survey.points.cpu().numpy(),
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


# What the training cameras see.


class Survey(NamedTuple):
    """A coarse look from training cameras.

    cameras: `Cameras` of the N views; stride: every how many pixels a ray was sent; distances: N
    tensors `[h, w]` of world distances to the surface, inf where there is none; points: `[M, 3]` on
    the surface that is wanted, in the coordinates of rays; radius: the median width there of what
    the model saw at once, likewise.
    """

    cameras: Cameras
    stride: int
    distances: list
    points: torch.Tensor
    radius: float


def look_around(model, scene, chunk):
    """The `Survey` of a scene: where the rays of its training cameras end.

    Of what cameras stand around, the points are no farther out than they typically are: the
    surroundings of an unbounded capture would leave few points of the grid for its middle.
    """
    cameras = scene.cameras
    view = look(cameras)
    pixels = cameras.sizes.prod(dim=-1)
    # Of a Multicam scene, the finest scale alone.
    large = torch.nonzero(2 * pixels > pixels.max())[:, 0]
    count = min(SURVEY_VIEWS, len(large))
    cameras = cameras[large[torch.linspace(0, len(large) - 1, count).round().long()]]
    total = int(cameras.sizes.prod(dim=-1).sum())
    stride = max(1, round((total / SURVEY_RAYS) ** 0.5))
    distances, points, radii = [], [], []
    for index in range(len(cameras)):
        axes = [torch.arange(min(stride // 2, side - 1), side, stride, device=pixels.device)
                for side in cameras.sizes[index].tolist()]
        y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
        rays = pixels_to_rays(cameras, torch.full_like(x, index), x, y)
        output = render_image(model, rays, chunk)
        solid = output.acc > 0.5
        t = output.distance_median
        distances.append(world_distance(cameras, rays, t).where(solid, torch.inf))
        points.append((rays.origins + t[..., None] * rays.directions)[solid])
        width = rays.radii[..., 0] * (t if model.ray_shape == "cone" else 1)
        radii.append(width[solid])
    points, radii = torch.cat(points), torch.cat(radii)
    if not view.forward_facing and view.distance:
        focus = torch.as_tensor(view.focus, device=points.device)
        within = (points.double() - focus).norm(dim=-1) <= view.distance
        if within.float().mean() > ENCLOSED:
            points, radii = points[within], radii[within]
    return Survey(cameras, stride, distances, points, float(radii.median()) if len(radii) else 0.0)


def choose_box(config, survey, scene_box):
    """The corners `[3]`, `[3]` of the box: what the survey met, unless flags say otherwise.

    With `--keep_unseen` it is the whole scene's, since what was never seen may be anywhere.
    """
    points = survey.points.double().cpu().numpy()
    if len(points) and not config.keep_unseen:
        low, high = np.percentile(points, [BOX_PERCENTILE, 100 - BOX_PERCENTILE], axis=0)
        margin = BOX_MARGIN * (high - low).max()
        low = np.maximum(low - margin, scene_box[0].numpy())
        high = np.minimum(high + margin, scene_box[1].numpy())
    else:
        low, high = scene_box.double().numpy()
    for axis, (name, ends) in enumerate(ranges(config).items()):
        if ends is not None:
            low[axis], high[axis] = ends
        if not low[axis] < high[axis]:
            raise UserError(f"the box goes from {low[axis]:g} to {high[axis]:g} along {name}; "
                            f"give --{name}_range a smaller and a larger number.")
    return low, high


def ranges(config):
    """The ends of the box that were typed, or None, by axis."""
    return {"x": config.x_range, "y": config.y_range, "z": config.z_range}


def choose_threshold(config, survey, density):
    """`--sigma_threshold`, else a density that most training rays exceed where they end."""
    if config.sigma_threshold is not None:
        return config.sigma_threshold
    if not len(survey.points):
        raise UserError("no ray of the training views meets anything, so that there is no surface "
                        "yet; train longer, or give a --sigma_threshold.")
    return float(np.percentile(density(survey.points.cpu().numpy()), THRESHOLD_PERCENTILE))


def density_at(model, survey, step, chunk):
    """A function of points `[M, 3]` that gives the model's density `[M]` there.

    Each point stands for a Gaussian as wide as a grid cell, and not finer than what the training
    rays told apart.
    """
    variance = max(step**2 / 12, survey.radius**2 / 4)
    device = survey.points.device
    at_once = chunk * model.samples_per_level if chunk else model.samples_at_once(device)

    @torch.no_grad()
    def density(points):
        found = [np.empty(0, dtype=np.float32)]
        for part in np.array_split(points, max(1, -(-len(points) // at_once))):
            means = torch.as_tensor(part, dtype=torch.float32, device=device)[:, None]
            covs = torch.full_like(means, variance)
            found.append(model.density(means, covs)[:, 0].cpu().numpy())
        return np.concatenate(found)

    return density


# From an isosurface to a mesh.


class Mesh(NamedTuple):
    """vertices `[V, 3]` in the cameras' world; faces `[F, 3]`; steps `[V]`: how long a step of the
    grid is there; colours `[V, 3]` in [0, 1], None at first."""

    vertices: np.ndarray
    faces: np.ndarray
    steps: np.ndarray
    colours: np.ndarray | None = None

    def select(self, keep):
        """The chosen faces `[F]` and the vertices that they use."""
        faces, used = mesh_utils.select_faces(self.faces, keep)
        colours = None if self.colours is None else self.colours[used]
        return Mesh(self.vertices[used], faces, self.steps[used], colours)


def in_world(surface, step, ndc):
    """An `Isosurface` as a `Mesh`."""
    vertices, steps = to_world(surface.vertices, step, ndc)
    # NDC is a mirror image of the world: its z grows with depth.
    return Mesh(vertices, surface.faces if ndc is None else surface.faces[:, ::-1], steps)


def to_world(points, step, ndc):
    """Points `[M, 3]` of the grid in the world, and how long `[M]` a step of the grid is there."""
    if ndc is None:
        return points, np.full(len(points), step)
    points = torch.as_tensor(points)
    deeper = points + points.new_tensor([0.0, 0.0, step])
    world, beyond = (coord.from_ndc(p, *ndc).numpy() for p in (points, deeper))
    return world, np.linalg.norm(beyond - world, axis=1)


def without_unseen(mesh, survey):
    """The faces of which some training view sees a corner."""
    seen = is_seen(survey, mesh.vertices, SLACK * mesh.steps)
    return mesh.select(seen[mesh.faces].any(axis=1))


def is_seen(survey, points, slack):
    """Whether a training view sees world points `[M, 3]`, or what is `slack [M]` before them."""
    seen = np.zeros(len(points), dtype=bool)
    points, slack = (torch.as_tensor(x, dtype=torch.float32, device=survey.points.device)
                     for x in (points, slack))
    for index, surface in enumerate(survey.distances):
        camera = torch.full_like(slack, index, dtype=torch.long)
        pixels, depth = points_to_pixels(survey.cameras, camera, points)
        cell = (pixels / survey.stride).floor()
        height, width = surface.shape
        inside = ((cell >= 0) & (cell < cell.new_tensor([width, height]))).all(dim=-1) & (depth > 0)
        x, y = cell.where(inside[:, None], 0.0).long().unbind(-1)
        distance = (points - survey.cameras.camtoworlds[index, :, 3]).norm(dim=-1)
        # A cell of the survey is some pixels wide, and a slanted surface as much deeper in it.
        cell_width = survey.stride * pixel_width(survey.cameras, index) * distance
        seen |= (inside & (distance <= surface[y, x] + slack + cell_width)).cpu().numpy()
    return seen


def pixel_width(cameras, index):
    """The width of a pixel in the middle of a picture, at distance 1."""
    return float(cameras.pixtocams[index, 0, :2].norm())


def without_small_pieces(mesh, smallest):
    """The pieces with at least `smallest` times as many faces as the largest."""
    piece = mesh_utils.pieces(len(mesh.vertices), mesh.faces)
    sizes = np.bincount(piece)
    return mesh.select(sizes[piece] >= smallest * sizes.max())


def without_background(mesh, background):
    """The pieces that are not all of the background's colour: no picture tells these from nothing.

    A mesh that is nothing else is left as it is.
    """
    piece = mesh_utils.pieces(len(mesh.vertices), mesh.faces)
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
    output = render_image(model, scene.lit(rays, 0), chunk)
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


# Files and pictures.


def folder_name(run):
    """The name of the folder of a mesh, which tells all that makes it differ from others."""
    config = run.config
    name = f"mesh_{run.step:08d}_{config.grid_size}{shading_name(config, run.own)}"
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
    write_whole(path, lambda file: file.write(content))


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
    drawn = mesh_utils.draw_mesh(
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
        dataset.check_is(run.scene)
        return dataset.image(index).rgb
    except UserError as error:
        print(f"The picture of the mesh has a rendering beside it, not the photograph: {error}")
    scene = run.scene["train"].to(select_device(config))
    rays = scene.lit(image_rays(scene.cameras, index), index)
    return render_image(run.model, rays, config.chunk).rgb


if __name__ == "__main__":
    run_script(main)
