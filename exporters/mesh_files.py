"""Mesh files: PLY, OBJ and GLB with vertex colours; GLB and OBJ with textures."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

import image_utils
import pose_utils
from exporters import gltf
from exporters.mesh import Mesh, vertex_normals
from exporters.texture import TexturedMesh
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


# Textured meshes.


def write_textured_mesh(folder: Path, textured: TexturedMesh, world_to_scene: Tensor) -> None:
    """Atomically write mesh.glb, and mesh.obj with mesh.mtl and texture.png.

    Arguments as for `write_mesh`. Raises UserError if a file cannot be written.
    """
    textured = textured._replace(mesh=in_file_coordinates(textured.mesh, world_to_scene))
    contents = {"texture.png": image_utils.png_bytes(textured.colours),
                "mesh.mtl": mtl_of(textured).encode(), "mesh.obj": obj_of(textured).encode(),
                "mesh.glb": glb_of_textured(textured)}
    for name, content in contents.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))


def glb_of_textured(textured: TexturedMesh) -> bytes:
    """A GLB file with the images inside: unlit, or lit with the roughness of the surface."""
    vertices, faces = textured.mesh.vertices, textured.mesh.faces
    colour_png = image_utils.png_bytes(textured.colours)
    if textured.roughness is None:
        return gltf.glb(gltf.Geometry(vertices, faces, uv=textured.uv),
                        gltf.Material(colour_png=colour_png))
    zero = np.zeros_like(textured.roughness)
    roughness_png = image_utils.png_bytes(np.stack([zero, textured.roughness, zero], axis=-1))
    return gltf.glb(gltf.Geometry(vertices, faces, normals=textured.normals, uv=textured.uv),
                    gltf.Material(lit=True, colour_png=colour_png, roughness_png=roughness_png))


def mtl_of(textured: TexturedMesh) -> str:
    """The material file of an OBJ file: a diffuse texture, without shading if it is radiance."""
    lines = ["newmtl scene", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "map_Kd texture.png"]
    if textured.roughness is None:
        lines.append("illum 0")
    else:
        lines += ["illum 1", f"Pr {np.median(textured.roughness):.4f}"]
    return "\n".join(lines) + "\n"


def obj_of(textured: TexturedMesh) -> str:
    """An OBJ file, whose v runs upwards."""
    lines = ["mtllib mesh.mtl", "usemtl scene"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in textured.mesh.vertices]
    lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in textured.uv]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in textured.mesh.faces + 1]
    return "\n".join(lines) + "\n"
