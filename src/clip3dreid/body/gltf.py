"""Write bodies as glTF binaries (GLB): one file that viewers, browsers and report pages show and turn.

Source: "glTF 2.0 Specification", Khronos Group, 2021, chapters 3 (meshes, accessors) and 4 (the binary container).
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip3dreid.body.render import vertex_normals
from clip3dreid.errors import InputError

_MAGIC, _VERSION, _JSON, _BINARY = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
_VERTICES, _INDICES = 34962, 34963
"""Targets of buffer views."""
_FLOAT, _SHORT, _WHOLE = 5126, 5123, 5125
"""Types of components: float32, uint16, uint32."""
_MOST_SHORT = 65535
"""Vertices that uint16 tells apart: its largest value means something else."""


def glb(
    vertices: Tensor,
    faces: Tensor,
    *,
    colour: tuple[float, float, float] = (0.55, 0.48, 0.42),
    name: str = "body",
) -> bytes:
    """Return a mesh as a GLB file, with smooth normals and one matt colour.

    The frame is the body model's and that of glTF: y up, facing +z, right-handed, metres.

    Args:
        vertices: (V, 3) metres.
        faces: (F, 3) whole numbers below V, counter-clockwise as seen from outside.
        colour: linear red, green and blue, 0..1.
        name: of the mesh.

    Raises:
        InputError: if these are no mesh.

    Example:
        >>> from clip3dreid.body.gltf import glb
        >>> body = model.shape("a.jpg")
        >>> glb(body.vertices[0], body.faces)[:4]
        b'glTF'
    """
    if (
        vertices.ndim != 2
        or faces.ndim != 2
        or (vertices.shape[1], faces.shape[1]) != (3, 3)
        or not len(faces)
    ):
        raise InputError(
            f"vertices {tuple(vertices.shape)} and faces {tuple(faces.shape)} are no mesh; give (V, 3) and (F, 3)"
        )
    points = vertices.detach().cpu().float()
    corners = faces.detach().cpu().to(torch.int64)
    if not bool(torch.isfinite(points).all()) or int(corners.min()) < 0 or int(corners.max()) >= len(points):
        raise InputError(
            f"the mesh has vertices that are not finite, or faces beyond its {len(points)} vertices"
        )
    normals = vertex_normals(points[None], corners)[0]
    # glTF wants length 1, also where no face has an area.
    normals = torch.where(normals.norm(dim=1, keepdim=True) > 0, normals, torch.tensor([0.0, 1.0, 0.0]))
    small = len(points) <= _MOST_SHORT
    index = corners.numpy().astype("<u2" if small else "<u4").reshape(-1)
    arrays = [points.numpy().astype("<f4"), normals.numpy().astype("<f4"), index]
    views, binary = _buffer(arrays, (_VERTICES, _VERTICES, _INDICES))
    positions = arrays[0]
    described = {
        "asset": {"version": "2.0", "generator": "clip3dreid"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [
            {
                "name": name,
                "primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2, "material": 0}],
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*colour, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.9,
                }
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(positions),
                "type": "VEC3",
                "min": [float(value) for value in positions.min(0)],
                "max": [float(value) for value in positions.max(0)],
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": len(positions), "type": "VEC3"},
            {
                "bufferView": 2,
                "componentType": _SHORT if small else _WHOLE,
                "count": len(index),
                "type": "SCALAR",
            },
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    return _container(json.dumps(described, separators=(",", ":")).encode(), binary)


def _buffer(arrays: list[npt.NDArray[Any]], targets: tuple[int, ...]) -> tuple[list[dict[str, int]], bytes]:
    """Return what says where each array lies, and all of them one behind the other, each from a multiple of four."""
    views, binary = [], b""
    for array, target in zip(arrays, targets, strict=True):
        content = np.ascontiguousarray(array).tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(content), "target": target})
        binary += _padded(content, b"\0")
    return views, binary


def _container(described: bytes, binary: bytes) -> bytes:
    described = _padded(described, b" ")
    chunks = b"".join(
        struct.pack("<II", len(content), kind) + content
        for content, kind in ((described, _JSON), (binary, _BINARY))
    )
    return struct.pack("<III", _MAGIC, _VERSION, 12 + len(chunks)) + chunks


def mesh_of(content: bytes) -> tuple[Tensor, Tensor]:
    """Return the vertices (V, 3) float32 and the faces (F, 3) int64 of a file that `glb` wrote."""
    size = struct.unpack_from("<I", content, 12)[0]
    described = json.loads(content[20 : 20 + size])
    start = 20 + size + 8
    views, index = described["bufferViews"], described["accessors"][2]
    small = index["componentType"] == _SHORT
    points = np.frombuffer(content, "<f4", 3 * described["accessors"][0]["count"], start)
    corners = np.frombuffer(
        content, "<u2" if small else "<u4", index["count"], start + views[2]["byteOffset"]
    )
    # Copies: torch wants to be able to write to what it is given.
    return torch.tensor(points).reshape(-1, 3), torch.tensor(corners.astype(np.int64)).reshape(-1, 3)


def _padded(content: bytes, filling: bytes) -> bytes:
    return content + filling * (-len(content) % 4)
