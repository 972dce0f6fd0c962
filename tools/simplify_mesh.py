"""Take vertices out of a mesh, and keep its shape."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def decimate(
    vertices: Array, faces: Array, count: int, importance: Array | None = None
) -> tuple[Array, Array]:
    """Collapse edges into existing vertices until `count` are left, so that every shape keeps its own places.

    Garland and Heckbert, "Surface Simplification Using Quadric Error Metrics", SIGGRAPH 1997, with half-edge
    collapses. Collapses that would pinch the surface or turn a face over are not done.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        count: vertices to keep.
        importance: (V,) factor on the error of moving away from a vertex; low where detail matters little.

    Returns:
        Kept vertices' indices (count,) ascending, and faces (F', 3) into them.
    """
    importance = np.ones(len(vertices)) if importance is None else importance
    normals = np.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    area = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = normals / np.maximum(area, 1e-18)
    plane = np.concatenate([unit, -(unit * vertices[faces[:, 0]]).sum(1, keepdims=True)], 1)
    quadric = np.zeros((len(vertices), 4, 4))
    for corner in range(3):
        np.add.at(quadric, faces[:, corner], area[:, :, None] * plane[:, :, None] * plane[:, None])
    quadric *= importance[:, None, None]
    of_vertex: list[set[int]] = [set() for _ in vertices]
    corners: list[list[int]] = [list(map(int, face)) for face in faces]
    for f, face in enumerate(corners):
        for v in face:
            of_vertex[v].add(f)
    homogeneous = np.concatenate([vertices, np.ones((len(vertices), 1))], 1)

    def cost(gone: int, kept: int) -> float:
        q = quadric[gone] + quadric[kept]
        # A little pull to keep edges short: flat parts would otherwise lose all their vertices.
        length = float(((vertices[gone] - vertices[kept]) ** 2).sum())
        pull = 2e-5 * length * float(min(importance[gone], importance[kept]))
        return float(homogeneous[kept] @ q @ homogeneous[kept] + pull)

    def neighbours(v: int) -> set[int]:
        return {w for f in of_vertex[v] for w in corners[f]} - {v}

    version = [0] * len(vertices)
    queue = [(cost(a, b), a, b, 0, 0) for a in range(len(vertices)) for b in neighbours(a)]
    heapq.heapify(queue)
    alive = sum(1 for fs in of_vertex if fs)
    while alive > count and queue:
        _, gone, kept, seen_gone, seen_kept = heapq.heappop(queue)
        if version[gone] != seen_gone or version[kept] != seen_kept:
            continue
        shared = of_vertex[gone] & of_vertex[kept]
        if len(shared) != 2 or len(neighbours(gone) & neighbours(kept)) != 2:
            continue
        moved = of_vertex[gone] - shared
        if any(_turns_over(vertices, corners[f], gone, kept) for f in moved):
            continue
        for f in shared:
            for v in corners[f]:
                of_vertex[v].discard(f)
        for f in moved:
            corners[f][corners[f].index(gone)] = kept
            of_vertex[kept].add(f)
        of_vertex[gone] = set()
        quadric[kept] += quadric[gone]
        version[gone] += 1
        version[kept] += 1
        alive -= 1
        for w in neighbours(kept):
            heapq.heappush(queue, (cost(w, kept), w, kept, version[w], version[kept]))
            heapq.heappush(queue, (cost(kept, w), kept, w, version[kept], version[w]))
    kept_ids = np.array([v for v, fs in enumerate(of_vertex) if fs])
    renumber = np.full(len(vertices), -1)
    renumber[kept_ids] = np.arange(len(kept_ids))
    alive_faces = sorted({f for fs in of_vertex for f in fs})
    return kept_ids, renumber[np.array([corners[f] for f in alive_faces])]


def _turns_over(vertices: Array, face: list[int], gone: int, kept: int) -> bool:
    before = vertices[face]
    after = vertices[[kept if v == gone else v for v in face]]
    n0, n1 = (
        np.cross(before[1] - before[0], before[2] - before[0]),
        np.cross(after[1] - after[0], after[2] - after[0]),
    )
    size = np.linalg.norm(n0) * np.linalg.norm(n1)
    return bool(n0 @ n1 < 0.2 * size)


def largest_surface(vertices: Array, faces: Array) -> Array:
    """Return the vertices (indices) of the largest connected surface: the skin, without eyes and teeth."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    _, label = connected_components(graph, directed=False)
    return np.flatnonzero(label == np.bincount(label[faces[:, 0]]).argmax())
