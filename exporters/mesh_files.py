"""Mesh files: PLY, OBJ and GLB with vertex colours; GLB and OBJ with textures.

All are as accurate as the scene's poses, also at map coordinates, whose steps in 32 bits show.
"""

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

# Farther from the origin than this many extents of a mesh, 32 bits show steps in its surface.
FAR_AWAY = 100.0


def write_mesh(path: Path, mesh: Mesh, world_to_scene: Tensor) -> None:
    """Atomically write a mesh in the coordinates of the scene's files.

    path: with suffix .ply (64-bit numbers), .obj or .glb; world_to_scene: `[4, 4]` of `Scene`.
    Raises UserError if it cannot be written.
    """
    content_of = {".ply": ply_of, ".obj": obj_of, ".glb": glb_of}[path.suffix]
    content = content_of(in_file_coordinates(mesh, world_to_scene))
    write_atomically(path, lambda file: file.write(content))


def in_file_coordinates(mesh: Mesh, world_to_scene: Tensor) -> Mesh:
    """The mesh in the coordinates of the scene's files instead of the cameras' world."""
    to_files = np.linalg.inv(world_to_scene.cpu().double().numpy())
    return mesh._replace(vertices=pose_utils.transform_points(mesh.vertices, to_files))


def mesh_offset(vertices: np.ndarray) -> np.ndarray:
    """The centre `[3]` of vertices `[V, 3]` far from the origin, in whole units; else zeros."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    centre = (low + high) / 2
    is_far = np.abs(centre).max() > FAR_AWAY * (high - low).max()
    return np.rint(centre) if is_far else np.zeros(3)


def ply_of(mesh: Mesh) -> bytes:
    """A binary PLY file of 64-bit coordinates."""
    points = np.empty(len(mesh.vertices), [("xyz", "<f8", 3), ("rgba", "u1", 4)])
    points["xyz"], points["rgba"] = mesh.vertices, 255
    points["rgba"][:, :3] = image_utils.to_uint8(mesh.colours)
    triangles = np.empty(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    triangles["count"], triangles["index"] = 3, mesh.faces
    names = [*(f"double {axis}" for axis in "xyz"),
             *(f"uchar {colour}" for colour in ("red", "green", "blue", "alpha"))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}",
              *(f"property {name}" for name in names), f"element face {len(triangles)}",
              "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + points.tobytes() + triangles.tobytes()


def obj_of(mesh: Mesh) -> bytes:
    """An OBJ file, which holds all digits.

    Far from the origin a comment tells an offset that a reader of 32 bits may subtract.
    """
    text = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False,
                           vertex_colors=image_utils.to_uint8(mesh.colours)).export(
        file_type="obj", digits=8)
    return (offset_note(mesh.vertices) + text).encode()


def offset_note(vertices: np.ndarray) -> str:
    """The comment of an OBJ file with an offset, empty near the origin."""
    offset = mesh_offset(vertices)
    note = f"# Far from the origin: centre {' '.join(map(repr, offset.tolist()))}\n"
    return note * bool(offset.any())


def glb_of(mesh: Mesh) -> bytes:
    """A GLB file: unlit radiance, or the lit albedo and roughness of a relightable model.

    Its numbers have 32 bits; far from the origin its node holds an offset of the vertices.
    """
    linear = image_utils.srgb_to_linear(torch.as_tensor(mesh.colours)).numpy()
    offset = mesh_offset(mesh.vertices)
    geometry = gltf.Geometry(mesh.vertices - offset, mesh.faces, linear, offset=offset)
    if mesh.roughness is None:
        return gltf.glb(geometry, gltf.Material())
    # Vertices have no roughness in glTF, so the whole mesh has the median.
    material = gltf.Material(lit=True, roughness=float(np.median(mesh.roughness)))
    return gltf.glb(geometry._replace(normals=vertex_normals(mesh)), material)


# Textured meshes.


def write_textured_mesh(folder: Path, textured: TexturedMesh, world_to_scene: Tensor) -> None:
    """Atomically write mesh.glb, and mesh.obj with mesh.mtl and texture.png.

    Arguments as for `write_mesh`. Raises UserError if a file cannot be written.
    """
    textured = textured._replace(mesh=in_file_coordinates(textured.mesh, world_to_scene))
    contents = {"texture.png": image_utils.png_bytes(textured.colours),
                "mesh.mtl": mtl_of(textured).encode(),
                "mesh.obj": obj_of_textured(textured).encode(),
                "mesh.glb": glb_of_textured(textured)}
    for name, content in contents.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))


def glb_of_textured(textured: TexturedMesh) -> bytes:
    """A GLB file with the images inside: unlit, or lit with the roughness of the surface."""
    offset = mesh_offset(textured.mesh.vertices)
    geometry = gltf.Geometry(textured.mesh.vertices - offset, textured.mesh.faces, uv=textured.uv,
                             offset=offset)
    colour_png = image_utils.png_bytes(textured.colours)
    if textured.roughness is None:
        return gltf.glb(geometry, gltf.Material(colour_png=colour_png))
    zero = np.zeros_like(textured.roughness)
    roughness_png = image_utils.png_bytes(np.stack([zero, textured.roughness, zero], axis=-1))
    return gltf.glb(geometry._replace(normals=textured.normals),
                    gltf.Material(lit=True, colour_png=colour_png, roughness_png=roughness_png))


def mtl_of(textured: TexturedMesh) -> str:
    """The material file of an OBJ file: a diffuse texture, without shading if it is radiance."""
    lines = ["newmtl scene", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "map_Kd texture.png"]
    if textured.roughness is None:
        lines.append("illum 0")
    else:
        lines += ["illum 1", f"Pr {np.median(textured.roughness):.4f}"]
    return "\n".join(lines) + "\n"


def obj_of_textured(textured: TexturedMesh) -> str:
    """An OBJ file, whose v runs upwards; far from the origin with the comment of `obj_of`."""
    lines = [offset_note(textured.mesh.vertices) + "mtllib mesh.mtl", "usemtl scene"]
    lines += [f"v {x:.12g} {y:.12g} {z:.12g}" for x, y, z in textured.mesh.vertices]
    lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in textured.uv]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in textured.mesh.faces + 1]
    return "\n".join(lines) + "\n"
