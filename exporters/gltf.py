"""Meshes as binary glTF 2.0 (GLB): one triangle mesh, its attributes and its material.

glTF stores vertex colours as linear light; its image files of colours are sRGB.
"""

import json
import struct
from typing import Any, NamedTuple

import numpy as np

FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
COMPONENTS = {np.dtype(np.float32): FLOAT, np.dtype(np.uint16): UNSIGNED_SHORT,
              np.dtype(np.uint32): UNSIGNED_INT}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942


class Material(NamedTuple):
    """The material of a mesh, which has vertex colours or textures.

    lit: whether viewers light it, as a dielectric of some roughness; otherwise its colours are
    radiance and shown as they are (KHR_materials_unlit). roughness: factor in [0, 1].
    colour_png, roughness_png: content of image files, or None; glTF reads roughness from green and
    metalness from blue.
    """

    lit: bool = False
    roughness: float = 1.0
    colour_png: bytes | None = None
    roughness_png: bytes | None = None


class Geometry(NamedTuple):
    """A triangle mesh: positions `[V, 3]`, faces `[F, 3]`; further attributes or None.

    linear_colours: `[V, 3]` in [0, 1]; normals: unit `[V, 3]`; uv: `[V, 2]`, v downwards from the
    image's upper edge; offset: `[3]` from the positions to the scene's, kept in 64 bits.
    """

    positions: np.ndarray
    faces: np.ndarray
    linear_colours: np.ndarray | None = None
    normals: np.ndarray | None = None
    uv: np.ndarray | None = None
    offset: np.ndarray | None = None


def glb(geometry: Geometry, material: Material) -> bytes:
    """The content of a GLB file."""
    file = _File()
    positions = geometry.positions.astype(np.float32)
    attributes = {"POSITION": file.add_array(
        positions, ARRAY_BUFFER, min=positions.min(axis=0).tolist(),
        max=positions.max(axis=0).tolist())}
    if geometry.normals is not None:
        attributes["NORMAL"] = file.add_array(geometry.normals.astype(np.float32), ARRAY_BUFFER)
    if geometry.uv is not None:
        attributes["TEXCOORD_0"] = file.add_array(geometry.uv.astype(np.float32), ARRAY_BUFFER)
    if geometry.linear_colours is not None:
        attributes["COLOR_0"] = file.add_array(
            _to_rgba16(geometry.linear_colours), ARRAY_BUFFER, normalized=True)
    indices = file.add_array(geometry.faces.astype(np.uint32).reshape(-1, 1), ELEMENT_ARRAY_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    node: dict[str, Any] = {"mesh": 0, "name": "mesh"}
    if geometry.offset is not None and geometry.offset.any():
        node["translation"] = geometry.offset.tolist()
    root = {"asset": {"version": "2.0", "generator": "mipnerf"}, "scene": 0,
            "scenes": [{"nodes": [0]}], "nodes": [node],
            "meshes": [{"primitives": [primitive]}]}
    return file.content(root | _material(material, file))


def _to_rgba16(linear_colours: np.ndarray) -> np.ndarray:
    """Opaque colours `[V, 4]` of 16 bits: 8 would show steps in dark linear light."""
    rgb = np.rint(np.clip(linear_colours, 0, 1) * 65535)
    return np.concatenate([rgb, np.full((len(rgb), 1), 65535)], axis=1).astype(np.uint16)


def _material(material: Material, file: "_File") -> dict[str, Any]:
    """The parts of a glTF file that describe a material; adds its images to the file."""
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": float(material.roughness)}
    images = {"baseColorTexture": material.colour_png,
              "metallicRoughnessTexture": material.roughness_png}
    parts: dict[str, Any] = {}
    for index, (name, png) in enumerate((n, p) for n, p in images.items() if p is not None):
        surface[name] = {"index": index}
        parts.setdefault("textures", []).append({"source": index, "sampler": 0})
        parts.setdefault("images", []).append(
            {"bufferView": file.add_bytes(png), "mimeType": "image/png"})
        # Linear filters with mipmaps; beyond the edge the last texel is repeated.
        parts["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
    # The surfaces of a scene are open, and would be invisible from behind.
    entry: dict[str, Any] = {"pbrMetallicRoughness": surface, "doubleSided": True}
    if not material.lit:
        entry["extensions"] = {"KHR_materials_unlit": {}}
        parts["extensionsUsed"] = ["KHR_materials_unlit"]
    return parts | {"materials": [entry]}


class _File:
    """The binary buffer of a GLB file, with its views and accessors."""

    def __init__(self):
        self.buffer = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def add_bytes(self, data: bytes, target: int | None = None) -> int:
        """Append data, aligned to four bytes; returns the index of its view."""
        view = {"buffer": 0, "byteOffset": len(self.buffer), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.buffer += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def add_array(self, array: np.ndarray, target: int, **properties: Any) -> int:
        """Append an array `[N, C]`; returns the index of its accessor."""
        view = self.add_bytes(np.ascontiguousarray(array).tobytes(), target)
        self.accessors.append({
            "bufferView": view, "componentType": COMPONENTS[array.dtype], "count": len(array),
            "type": TYPES[array.shape[1]], **properties})
        return len(self.accessors) - 1

    def content(self, root: dict[str, Any]) -> bytes:
        """The whole file: header, JSON and buffer."""
        text = json.dumps(root | {"accessors": self.accessors, "bufferViews": self.views,
                                  "buffers": [{"byteLength": len(self.buffer)}]}).encode()
        text += b" " * (-len(text) % 4)
        chunks = (struct.pack("<II", len(text), JSON_CHUNK) + text
                  + struct.pack("<II", len(self.buffer), BINARY_CHUNK) + bytes(self.buffer))
        return struct.pack("<III", MAGIC, 2, 12 + len(chunks)) + chunks
