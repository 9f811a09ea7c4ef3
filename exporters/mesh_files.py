"""Mesh files: PLY and OBJ with vertex colours, GLB with a material."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

import image_utils
import pose_utils
from exporters import gltf
from exporters.mesh import Mesh, vertex_normals
from runtime.files import write_atomically


def write_mesh(path: Path, mesh: Mesh, world_to_scene: Tensor) -> None:
    """Atomically write a mesh in the coordinates of the scene's files.

    path: with suffix .ply, .obj or .glb; world_to_scene: `[4, 4]` of `Scene`. Raises UserError if
    it cannot be written.
    """
    mesh = in_file_coordinates(mesh, world_to_scene)
    if path.suffix == ".glb":
        content = glb_of(mesh)
    else:
        result = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False,
                                 vertex_colors=image_utils.to_uint8(mesh.colours))
        content = result.export(file_type=path.suffix[1:])
    content = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda file: file.write(content))


def in_file_coordinates(mesh: Mesh, world_to_scene: Tensor) -> Mesh:
    """The mesh in the coordinates of the scene's files instead of the cameras' world."""
    to_files = np.linalg.inv(world_to_scene.double().numpy())
    return mesh._replace(vertices=pose_utils.transform_points(mesh.vertices, to_files))


def glb_of(mesh: Mesh) -> bytes:
    """A GLB file: unlit radiance, or the lit albedo and roughness of a relightable model."""
    linear = image_utils.srgb_to_linear(torch.as_tensor(mesh.colours)).numpy()
    if mesh.roughness is None:
        return gltf.glb(gltf.Geometry(mesh.vertices, mesh.faces, linear), gltf.Material())
    # Vertices have no roughness in glTF, so the whole mesh has the median.
    material = gltf.Material(lit=True, roughness=float(np.median(mesh.roughness)))
    return gltf.glb(gltf.Geometry(mesh.vertices, mesh.faces, linear, vertex_normals(mesh)),
                    material)
