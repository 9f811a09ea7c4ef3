"""GLB files read by their specification, to test what writes them."""

import json
import struct

import numpy as np

TYPES = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Glb:
    """The JSON `root` of a file, and its arrays."""

    def __init__(self, content):
        magic, version, length = struct.unpack_from("<4sII", content)
        assert (magic, version, length) == (b"glTF", 2, len(content))
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.root = json.loads(content[20 : 20 + size])
        size_of_buffer, kind = struct.unpack_from("<I4s", content, 20 + size)
        assert kind == b"BIN\0" and 28 + size + size_of_buffer == len(content)
        self.buffer = content[28 + size :]
        assert self.root["buffers"] == [{"byteLength": len(self.buffer)}]

    def view(self, index):
        """The bytes of a buffer view."""
        view = self.root["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0
        return self.buffer[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def array(self, index):
        """The values of an accessor; normalized integers as floats in [0, 1]."""
        accessor = self.root["accessors"][index]
        data = self.view(accessor["bufferView"])
        array = np.frombuffer(data, TYPES[accessor["componentType"]])
        array = array.reshape(accessor["count"], WIDTHS[accessor["type"]])
        return array / np.iinfo(array.dtype).max if accessor.get("normalized") else array

    @property
    def primitive(self):
        return self.root["meshes"][0]["primitives"][0]

    def attribute(self, name):
        return self.array(self.primitive["attributes"][name])

    @property
    def faces(self):
        return self.array(self.primitive["indices"]).reshape(-1, 3)

    @property
    def material(self):
        return self.root["materials"][self.primitive["material"]]

    def image(self, texture):
        """The content of the image file of one of the material's textures."""
        index = self.material["pbrMetallicRoughness"][texture]["index"]
        image = self.root["images"][self.root["textures"][index]["source"]]
        assert image["mimeType"] == "image/png"
        return self.view(image["bufferView"])
