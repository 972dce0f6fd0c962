import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clip3dreid.body.gltf import glb, mesh_of
from clip3dreid.body.smpl import load_body
from clip3dreid.errors import InputError

SIZES = {5126: "<f4", 5123: "<u2", 5125: "<u4"}
PARTS = {"VEC3": 3, "SCALAR": 1}


def read(file: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read a GLB file by the specification alone: its JSON, and what its accessors hold."""
    magic, version, length = struct.unpack_from("<4sII", file)
    assert (magic, version, length) == (b"glTF", 2, len(file))
    chunks, place = [], 12
    while place < len(file):
        size, kind = struct.unpack_from("<I4s", file, place)
        assert size % 4 == 0
        chunks.append((kind, file[place + 8 : place + 8 + size]))
        place += 8 + size
    assert [kind for kind, _ in chunks] == [b"JSON", b"BIN\0"]
    described, binary = json.loads(chunks[0][1]), chunks[1][1]
    assert 0 <= len(binary) - described["buffers"][0]["byteLength"] < 4
    held = []
    for accessor in described["accessors"]:
        view = described["bufferViews"][accessor["bufferView"]]
        kind = SIZES[accessor["componentType"]]
        assert view["byteOffset"] % np.dtype(kind).itemsize == 0
        content = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = np.frombuffer(content, kind).reshape(-1, PARTS[accessor["type"]])
        assert len(values) == accessor["count"]
        held.append(values)
    return described, held


TETRAHEDRON = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
SIDES = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def test_a_mesh_is_read_back_as_it_was() -> None:
    described, (points, normals, index) = read(glb(TETRAHEDRON, SIDES, name="four"))
    np.testing.assert_array_equal(points, TETRAHEDRON.numpy())
    np.testing.assert_array_equal(index.reshape(-1, 3), SIDES.numpy())
    assert described["meshes"][0]["name"] == "four"
    assert described["meshes"][0]["primitives"][0]["attributes"] == {"POSITION": 0, "NORMAL": 1}
    assert (described["accessors"][0]["min"], described["accessors"][0]["max"]) == ([0, 0, 0], [1, 1, 1])
    # The corner at the origin has the three square sides: its normal points away from all of them.
    np.testing.assert_allclose(normals[0], -np.ones(3) / np.sqrt(3), atol=1e-6)


def test_a_body_is_closed_and_its_normals_point_out() -> None:
    body = load_body("anny_light")
    _, (points, normals, index) = read(glb(body.rest(torch.zeros(1, 10)).vertices[0], body.faces))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    corners = points[index.reshape(-1, 3)]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # A volume is positive where faces are counter-clockwise from outside, and normals then go with the faces.
    assert np.einsum("fc,fc->", corners[:, 0], cross) > 0
    assert (np.einsum("fc,fc->f", normals[index.reshape(-1, 3)].mean(1), cross) > 0).mean() > 0.97


def test_a_mesh_beyond_sixteen_bits_has_wider_numbers() -> None:
    points = torch.rand(65_536, 3)
    faces = torch.tensor([[0, 1, 65_535]])
    described, (_, _, index) = read(glb(points, faces))
    assert described["accessors"][2]["componentType"] == 5125
    assert index.ravel().tolist() == [0, 1, 65_535]


@pytest.mark.parametrize("count", [4, 5, 65_536])
def test_a_mesh_is_had_back_from_its_file(count: int) -> None:
    points, faces = torch.rand(count, 3), torch.randint(count, (7, 3))
    vertices, corners = mesh_of(glb(points, faces))
    assert torch.equal(vertices, points)
    assert torch.equal(corners, faces)


@given(st.text(max_size=20))
def test_any_name_leaves_the_file_whole(name: str) -> None:
    described, _ = read(glb(TETRAHEDRON, SIDES, name=name))
    assert described["nodes"][0]["name"] == name


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        (TETRAHEDRON[:, :2], SIDES),
        (TETRAHEDRON, SIDES[:, :2]),
        (TETRAHEDRON, SIDES[:0]),
        (TETRAHEDRON, SIDES + 1),
        (TETRAHEDRON, SIDES - 1),
        (TETRAHEDRON / 0, SIDES),
    ],
)
def test_what_is_no_mesh_is_refused(vertices: torch.Tensor, faces: torch.Tensor) -> None:
    with pytest.raises(InputError, match="mesh"):
        glb(vertices, faces)
