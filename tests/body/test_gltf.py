import json
import struct

import numpy as np
import pytest

from clip3dreid.body.gltf import glb


def read(content: bytes) -> tuple[dict, np.ndarray, np.ndarray]:
    """Read a GLB as its specification says it is laid out."""
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON"
    assert size % 4 == 0
    scene = json.loads(content[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", content, 20 + size)
    assert kind == b"BIN\0"
    assert binary_size % 4 == 0
    binary = content[28 + size :]
    assert len(binary) == binary_size == scene["buffers"][0]["byteLength"]
    arrays = []
    for accessor in scene["accessors"]:
        view = scene["bufferViews"][accessor["bufferView"]]
        kinds = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        array = np.frombuffer(part, kinds[accessor["componentType"]])
        assert view["byteOffset"] % array.itemsize == 0
        assert accessor["count"] == len(array) // {"VEC3": 3, "SCALAR": 1}[accessor["type"]]
        arrays.append(array)
    return scene, arrays[0].reshape(-1, 3), arrays[1].reshape(-1, 3)


@pytest.mark.parametrize(("points", "component"), [(5, 5123), (65_535, 5123), (65_536, 5125)])
def test_a_mesh_comes_back_as_it_was(points: int, component: int) -> None:
    rng = np.random.default_rng(points)
    vertices, faces = rng.normal(size=(points, 3)), rng.integers(0, points, (7, 3))
    faces[0, 0] = points - 1
    scene, positions, corners = read(glb(vertices, faces, 'a "body" <x>'))
    assert np.array_equal(positions, vertices.astype(np.float32))
    assert np.array_equal(corners, faces)
    assert scene["accessors"][1]["componentType"] == component
    assert scene["accessors"][0]["min"] == pytest.approx(vertices.min(0), rel=1e-6)
    assert scene["accessors"][0]["max"] == pytest.approx(vertices.max(0), rel=1e-6)
    assert scene["meshes"][0]["name"] == 'a "body" <x>'
