"""Write meshes as GLB, the binary form of glTF 2.0, which viewers, Blender and browsers open.

Source: Khronos Group, "glTF 2.0 Specification", 2021, sections 3.6 (buffers, accessors) and 4 (GLB).
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

_GLB, _VERSION = 0x46546C67, 2
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_FLOAT, _UNSIGNED_SHORT, _UNSIGNED_INT = 5126, 5123, 5125
_ARRAY, _ELEMENTS, _TRIANGLES = 34962, 34963, 4


def glb(vertices: npt.NDArray[Any], faces: npt.NDArray[Any], name: str = "body") -> bytes:
    """Return a mesh as a GLB file: one buffer with positions, then indices.

    Args:
        vertices: (V, 3) metres, y up.
        faces: (F, 3) whole numbers below V, counter-clockwise seen from outside.
        name: of the mesh.
    """
    points = np.ascontiguousarray(vertices, "<f4")
    wide = len(points) > 2**16 - 1  # the largest index restarts a strip
    corners = np.ascontiguousarray(faces, "<u4" if wide else "<u2").reshape(-1)
    positions, indices = points.tobytes(), corners.tobytes()
    binary = _padded(positions + indices, b"\0")
    scene = {
        "asset": {"version": "2.0", "generator": "clip3dreid"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [
            {
                "name": name,
                "primitives": [
                    {"attributes": {"POSITION": 0}, "indices": 1, "mode": _TRIANGLES, "material": 0}
                ],
            }
        ],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.72, 0.72, 0.74, 1],
                    "metallicFactor": 0,
                    "roughnessFactor": 0.9,
                }
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": len(points),
                "type": "VEC3",
                "min": points.min(0).tolist(),
                "max": points.max(0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": _UNSIGNED_INT if wide else _UNSIGNED_SHORT,
                "count": len(corners),
                "type": "SCALAR",
            },
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(positions), "target": _ARRAY},
            {"buffer": 0, "byteOffset": len(positions), "byteLength": len(indices), "target": _ELEMENTS},
        ],
        "buffers": [{"byteLength": len(binary)}],
    }
    text = _padded(json.dumps(scene, separators=(",", ":")).encode(), b" ")
    chunks = b"".join(
        struct.pack("<II", len(chunk), kind) + chunk for chunk, kind in ((text, _JSON), (binary, _BIN))
    )
    return struct.pack("<III", _GLB, _VERSION, 12 + len(chunks)) + chunks


def _padded(chunk: bytes, filling: bytes) -> bytes:
    """Return a chunk whose length is a multiple of four, as the format wants it."""
    return chunk + filling * (-len(chunk) % 4)
