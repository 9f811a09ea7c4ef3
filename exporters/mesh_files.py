"""Mesh files whose numbers are as accurate as the poses of the scene: also at map coordinates."""

import numpy as np
import trimesh

# Farther from the origin than this many extents of a mesh, 32 bits show steps in its surface.
FAR_AWAY = 100.0


def ply_bytes(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> bytes:
    """A binary PLY file; vertices: float64 `[V, 3]`, stored as such; colours: uint8 `[V, 3]`."""
    alpha = np.full((len(vertices), 1), 255, np.uint8)
    points = np.empty(len(vertices), [("xyz", "<f8", 3), ("rgba", "u1", 4)])
    points["xyz"], points["rgba"] = vertices, np.concatenate([colours, alpha], axis=1)
    triangles = np.empty(len(faces), [("count", "u1"), ("index", "<i4", 3)])
    triangles["count"], triangles["index"] = 3, faces
    names = [*(f"double {axis}" for axis in "xyz"),
             *(f"uchar {colour}" for colour in ("red", "green", "blue", "alpha"))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}",
              *(f"property {name}" for name in names), f"element face {len(faces)}",
              "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + points.tobytes() + triangles.tobytes()


def with_offset(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, kind: str) -> bytes:
    """A "glb" or "obj" file; far from the origin a GLB's node holds the offset of its vertices.

    OBJ files hold all digits, and a comment with the offset that a reader of 32 bits may subtract.
    """
    offset = mesh_offset(vertices)
    if kind == "obj":
        text = trimesh.Trimesh(vertices, faces, process=False, vertex_colors=colours).export(
            file_type="obj", digits=8)
        note = f"# Far from the origin: centre {' '.join(map(repr, offset.tolist()))}\n"
        return (note * bool(offset.any()) + text).encode()
    mesh = trimesh.Trimesh(vertices - offset, faces, process=False, vertex_colors=colours)
    if not offset.any():
        return mesh.export(file_type=kind)
    scene = trimesh.Scene()
    scene.add_geometry(mesh, transform=trimesh.transformations.translation_matrix(offset))
    return scene.export(file_type=kind)


def mesh_offset(vertices: np.ndarray) -> np.ndarray:
    """Whole coordinates `[3]` of the middle of a mesh far from the origin, else zeros."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = np.rint(0.5 * (low + high))
    return middle if np.abs(middle).max() > FAR_AWAY * (high - low).max() else np.zeros(3)
