"""Textures of meshes: an atlas of charts, filled with the colours of the scene.

Texture coordinates are (u, v) in [0, 1], u to the right and v downwards; texel (x, y) of an S x S
image has its centre at ((x + 0.5) / S, (y + 0.5) / S).
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt

from exporters.isosurface import rasterize
from exporters.mesh import (
    Appearance,
    Mesh,
    SurfacePoints,
    Target,
    faces_of,
    import_simplification,
    surface_appearance,
    surface_points,
    unit,
    vertex_normals,
)
from exporters.survey import world_to_grid
from runtime.errors import UserError
from structures import Scene

# Texels between charts, so that filters do not mix them. The atlas is scaled to the image's size,
# which may take some of them.
PADDING = 3


class TexturedMesh(NamedTuple):
    """A mesh whose vertices are split where charts end, and its textures.

    uv: `[V, 2]` of `mesh`'s vertices; colours: `[S, S, 3]` sRGB values in [0, 1]; roughness:
    `[S, S]` of a relightable model, else None; normals: `[V, 3]`, those before splitting.
    """

    mesh: Mesh
    uv: np.ndarray
    colours: np.ndarray
    roughness: np.ndarray | None
    normals: np.ndarray


def add_texture(mesh: Mesh, target: Target, scene: Scene, size: int,
                **options: Any) -> TexturedMesh:
    """The mesh with textures of `size` x `size` texels. options: of `Renderer.render`."""
    in_cells = world_to_grid(mesh.vertices, scene.cameras.ndc) / target.grid.cell_size
    source, faces, uv = unwrap(in_cells, mesh.faces, size)
    covered, corners, weights = texels(faces, uv, size)

    def interpolate(values: np.ndarray) -> np.ndarray:
        return np.einsum("mk,mk...->m...", weights, values[source][corners])

    positions, viewdirs, cell_sizes = map(interpolate, surface_points(mesh, target))
    points = SurfacePoints(positions, unit(viewdirs), cell_sizes)
    images = fill(surface_appearance(points, target, scene, **options), covered)
    split = Mesh(mesh.vertices[source], faces, mesh.cell_sizes[source])
    return TexturedMesh(split, uv, images.colours, images.roughness, vertex_normals(mesh)[source])


def check_packages(config: Any) -> None:
    """Raise UserError if a package that `--faces` or `--texture` needs is not installed."""
    if faces_of(config):
        import_simplification()
    if config.texture:
        import_xatlas()


def import_xatlas() -> Any:
    """The package xatlas. Raises UserError if it is not installed."""
    try:
        import xatlas
    except ImportError:
        raise UserError("--texture needs the package xatlas; install it by `pip install "
                        "xatlas`, or all of the extra by `pip install \".[mesh]\"`.") from None
    return xatlas


def unwrap(vertices: np.ndarray, faces: np.ndarray,
           size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An atlas of charts for a square image: source `[V']`, faces `[F, 3]`, uv `[V', 2]`.

    vertices: `[V, 3]` in units of grid cells, so that near and far parts of a photographed scene
    get texels by their size in the images; xatlas also drops faces with an area of almost 0.
    source: index of each new vertex among the given ones, which are repeated where charts end.
    Raises UserError if xatlas is not installed.
    """
    xatlas = import_xatlas()
    atlas = xatlas.Atlas()
    # float32 is coarse far from the origin.
    centred = vertices - vertices.mean(axis=0)
    atlas.add_mesh(centred.astype(np.float32), faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, PADDING
    atlas.generate(pack_options=packing)
    source, faces, uv = atlas[0]
    # xatlas scales each axis by the atlas's own size, which is only about that of the image.
    uv = uv * (np.array([atlas.width, atlas.height]) / max(atlas.width, atlas.height))
    return source.astype(int), faces.astype(int), uv


def texels(faces: np.ndarray, uv: np.ndarray,
           size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texels that faces cover: bool `[S, S]`, and of each the corners and weights `[M, 3]`.

    weights: barycentric coordinates of the texel's centre; a centre just outside its face takes
    the nearest weights that are not negative.
    """
    corners = size * uv[faces]
    # Faces are drawn by their number. The rasterizer leaves 1 where there is none.
    numbers = np.repeat(np.arange(len(faces)) + 2.0, 3)[:, None]
    drawn = rasterize(corners.reshape(-1, 2), np.ones(3 * len(faces)),
                      np.arange(3 * len(faces)).reshape(-1, 3), numbers, size, size)
    face = np.rint(drawn[..., 0]).astype(int) - 2
    covered = face >= 0
    row, column = np.nonzero(covered)
    face = face[covered]
    weights = barycentric(np.stack([column, row], axis=1) + 0.5, corners[face])
    return covered, faces[face], weights


def barycentric(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates `[M, 3]` of points `[M, 2]` in triangles `[M, 3, 2]`, at least 0."""
    a, b, p = (x - corners[:, 0] for x in (corners[:, 1], corners[:, 2], points))
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    area = np.where(np.abs(area) < 1e-12, np.inf, area)
    second = (p[:, 0] * b[:, 1] - p[:, 1] * b[:, 0]) / area
    third = (a[:, 0] * p[:, 1] - a[:, 1] * p[:, 0]) / area
    weights = np.maximum(np.stack([1 - second - third, second, third], axis=1), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def fill(appearance: Appearance, covered: np.ndarray) -> Appearance:
    """Images `[S, S, ...]` of the values of covered texels; others take the nearest one's.

    Filters and mipmaps of viewers reach beyond the charts.
    """
    number = np.zeros(covered.shape, dtype=int)
    number[covered] = np.arange(np.count_nonzero(covered))
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    nearest = number[row, column]
    return Appearance(*(None if values is None else values[nearest] for values in appearance))


def sample_bilinear(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Values `[..., C]` of an image `[h, w, C]` at `uv [..., 2]`, bilinear, clamped at the edges.
    """
    last = np.array([image.shape[1] - 1, image.shape[0] - 1])
    texel = np.clip(uv * (last + 1) - 0.5, 0, last)
    low = np.floor(texel).astype(int)
    high, f = np.minimum(low + 1, last), texel - low
    (x0, y0), (x1, y1) = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
    fx, fy = f[..., :1], f[..., 1:]
    upper = (1 - fx) * image[y0, x0] + fx * image[y0, x1]
    lower = (1 - fx) * image[y1, x0] + fx * image[y1, x1]
    return (1 - fy) * upper + fy * lower
