"""Images of meshes from the cameras of a scene."""

import numpy as np
import torch
from torch import Tensor

import image_utils
from exporters import isosurface
from exporters.mesh import Mesh, vertex_normals
from exporters.texture import TexturedMesh, sample_bilinear
from ray_utils import points_to_pixels
from structures import Cameras

# Largest side of an image of the mesh, in pixels, and how many times larger it is rasterized.
VIEW_SIDE = 800
OVERSAMPLING = 2


def representative_view(cameras: Cameras) -> int:
    """Index of the camera in the middle of those with the largest image."""
    num_pixels = cameras.sizes.prod(dim=-1)
    largest = torch.nonzero(num_pixels == num_pixels.max())[:, 0]
    return int(largest[len(largest) // 2])


def mesh_sheet(mesh: Mesh | TexturedMesh, cameras: Cameras, index: int,
               reference: Tensor) -> np.ndarray:
    """A camera's reference image `[h, w, 3]`, and the mesh in its colours and normals beside it."""
    full = cameras.sizes[index].numpy()
    width, height = np.maximum(np.rint(full * min(1, VIEW_SIDE / full.max())), 1).astype(int)
    image = draw(mesh, cameras, index, width, height)
    row = [reference, image[..., :3], image[..., 3:6]]
    row = [image_utils.resize_area(image_utils.to_uint8(x), width, height) / 255 for x in row]
    return image_utils.contact_sheet([row])


def draw(mesh: Mesh | TexturedMesh, cameras: Cameras, index: int, width: int,
         height: int) -> np.ndarray:
    """Image `[OVERSAMPLING * height, OVERSAMPLING * width, 7]` of a mesh from a camera.

    Channels: colours, normals n as (n + 1) / 2, and coverage; the background is white.
    """
    is_textured = isinstance(mesh, TexturedMesh)
    geometry = mesh.mesh if is_textured else mesh
    normals = mesh.normals if is_textured else vertex_normals(mesh)
    surface = mesh.uv if is_textured else mesh.colours
    points = torch.as_tensor(geometry.vertices, dtype=torch.float32)
    camera = torch.full((len(points),), index)
    pixels, depths = (x.numpy() for x in points_to_pixels(cameras, camera, points))
    scale = OVERSAMPLING * np.array([width, height]) / cameras.sizes[index].numpy()
    # The last channel is 0 on the mesh and 1 beside it.
    values = np.concatenate([surface, normals * 0.5 + 0.5, np.zeros_like(normals[:, :1])], axis=1)
    image = isosurface.rasterize(pixels * scale, depths, geometry.faces, values,
                                 OVERSAMPLING * width, OVERSAMPLING * height)
    colours, normals, empty = image[..., :-4], image[..., -4:-1], image[..., -1:]
    if is_textured:
        colours = np.where(empty > 0.5, 1.0, sample_bilinear(mesh.colours, colours))
    return np.concatenate([colours, normals, 1 - empty], axis=-1)
