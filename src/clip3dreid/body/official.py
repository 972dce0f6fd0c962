"""Load official SMPL and SMPL-X files, forwarded by the `smplx` package behind the project's own call."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from clip3dreid.body.pickles import MOST_BYTES
from clip3dreid.body.smpl import (
    PARENTS,
    BodyOutput,
    check_shapes,
    joint_transforms,
    read_arrays,
    rotation_matrices,
)
from clip3dreid.errors import InputError
from clip3dreid.io.formats import decoding, read_npz


class OfficialBody(torch.nn.Module):
    """SMPL or SMPL-X by the `smplx` package, behind the same call as `smpl.BodyModel`.

    Attributes as of `smpl.BodyModel`. SMPL-X has 55 joints; the first 22 are SMPL's and take its pose, its jaw, eyes
    and fingers stay at rest, and joints 22 and 23 (SMPL's hands) are the heads of its middle fingers.
    """

    skinning_weights: Tensor
    faces: Tensor

    def __init__(self, model: torch.nn.Module, name: str, hands: tuple[int, int] | None) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.hands = hands
        self.phenotypes: dict[str, Tensor] = {}
        self.parents = PARENTS
        weights = cast(Tensor, model.lbs_weights)
        if hands is not None:
            # Everything of a hand that SMPL does not know moves with SMPL's hand, of the head with its head.
            owner = _smpl_joints(cast(Tensor, model.parents).tolist())
            folded = torch.zeros(len(weights), 24, dtype=weights.dtype)
            weights = folded.index_add_(1, torch.tensor(owner), weights)
        self.register_buffer("skinning_weights", weights, persistent=False)
        self.register_buffer("faces", cast(Tensor, model.faces_tensor), persistent=False)

    @property
    def num_betas(self) -> int:
        """Return K."""
        return int(cast(int, self.model.num_betas))

    @property
    def num_vertices(self) -> int:
        """Return V."""
        return len(self.skinning_weights)

    def shaped(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Return vertices (B, V, 3) and joints (B, 24, 3) in the rest pose, for betas (B, K)."""
        return self.rest(betas)

    def transforms(self, betas: Tensor, pose: Tensor) -> Tensor:
        """Return (B, 24, 3, 4) as `smpl.BodyModel.transforms`, without pose correctives, as clothes hide them."""
        return joint_transforms(self.rest(betas).joints, rotation_matrices(pose), self.parents)[0]

    def rest(self, betas: Tensor) -> BodyOutput:
        """Return bodies in the rest pose, for betas (B, K)."""
        out: BodyOutput = self(betas)
        return out

    def forward(
        self, betas: Tensor, pose: Tensor | None = None, translation: Tensor | None = None
    ) -> BodyOutput:
        """Return, as `smpl.BodyModel.forward` does, vertices (B, V, 3) and 24 joints (B, 24, 3), metres."""
        count = len(betas)
        if pose is None:
            pose = betas.new_zeros(count, 24, 3)
        body = pose[:, 1:22] if self.hands is not None else pose[:, 1:]
        given = {"betas": betas, "global_orient": pose[:, 0], "body_pose": body.flatten(1)}
        if self.hands is not None:
            for name, width in (("left_hand_pose", 45), ("right_hand_pose", 45)):
                given[name] = betas.new_zeros(count, width)
            for name in ("jaw_pose", "leye_pose", "reye_pose"):
                given[name] = betas.new_zeros(count, 3)
            given["expression"] = betas.new_zeros(count, int(cast(int, self.model.num_expression_coeffs)))
        out = self.model(**given)
        joints = out.joints[:, :24]
        if self.hands is not None:
            joints = torch.cat([out.joints[:, :22], out.joints[:, list(self.hands)]], 1)
        vertices = out.vertices
        if translation is not None:
            vertices, joints = vertices + translation[:, None], joints + translation[:, None]
        return BodyOutput(vertices, joints)


def _smpl_joints(parents: list[int]) -> list[int]:
    """Return for each of SMPL-X's joints the one of SMPL's 24 that it moves with."""
    joints: list[int] = []
    for joint, parent in enumerate(parents):
        if joint < 22:
            joints.append(joint)
        elif joints[parent] in (20, 22):
            joints.append(22)
        elif joints[parent] in (21, 23):
            joints.append(23)
        else:
            joints.append(joints[parent])
    return joints


def _smplx() -> Any:
    try:
        import smplx
    except ImportError as error:
        raise InputError(
            "official SMPL files are read by smplx, which is not installed; pip install 'clip3dreid[smpl]', or in a "
            "checkout make install-smpl (its licence is non-commercial research)"
        ) from error
    return smplx


def load_smpl(path: str | Path | None, num_betas: int = 10) -> OfficialBody:
    """Return an official SMPL file (`.pkl` or `.npz`, 24 joints) through `smplx`.

    Raises:
        InputError: if no path is given, smplx is missing, or the file is no SMPL body (see `smpl.read_arrays`).
    """
    path = _given(path, "SMPL", "https://smpl.is.tue.mpg.de")
    arrays = read_arrays(path)
    arrays.setdefault("posedirs", np.zeros((len(arrays["v_template"]), 3, 207), np.float32))
    keep = {key: np.array(value) for key, value in arrays.items()}
    keep["shapedirs"] = keep["shapedirs"][..., :num_betas].astype(np.float64)
    keep["weights"] = keep["weights"].astype(np.float64) / keep["weights"].astype(np.float64).sum(
        1, keepdims=True
    )
    smplx = _smplx()
    from smplx.utils import Struct

    # smplx picks landmarks by vertex numbers of its own; any that exists serves, since they are not used.
    landmarks = dict.fromkeys(smplx.vertex_ids.vertex_ids["smplh"], 0)
    with decoding(path, "an SMPL body", "give an SMPL file"):
        model = _quietly(
            smplx.SMPL, "", data_struct=Struct(**keep), vertex_ids=landmarks, num_betas=num_betas
        )
        return OfficialBody(model, str(path), None)


def load_smplx(path: str | Path | None, num_betas: int = 10) -> OfficialBody:
    """Return an official SMPL-X file (`.npz`, 55 joints) through `smplx`.

    Raises:
        InputError: if no path is given, smplx is missing, or the file is no SMPL-X body.
    """
    path = _given(path, "SMPL-X", "https://smpl-x.is.tue.mpg.de")
    # Names and numbers of parts are Python objects, which would be unpickled.
    arrays = read_npz(path, path, "get it again", skip_objects=True, most_bytes=MOST_BYTES)
    wanted = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
    if missing := [key for key in wanted if key not in arrays]:
        raise InputError(f"{path} has no {', '.join(missing)}: not an SMPL-X body; give an SMPL-X .npz")
    if (shape := arrays["kintree_table"].shape) != (2, 55):
        raise InputError(f"{path} has a tree of joints {shape} and SMPL-X (2, 55); use body=smpl for SMPL")
    check_shapes(arrays, 55, 9 * 54, path)
    parents = arrays["kintree_table"][0].astype(np.int64)
    if not all(0 <= parent < joint for joint, parent in enumerate(parents[1:].tolist(), start=1)):
        raise InputError(f"{path}: kintree_table is no tree of joints; give an SMPL-X .npz")
    smplx = _smplx()
    for side in "lr":
        arrays.setdefault(f"hands_components{side}", np.eye(45))
        arrays.setdefault(f"hands_mean{side}", np.zeros(45))
    arrays.setdefault("lmk_faces_idx", np.zeros(51, np.int64))
    arrays.setdefault("lmk_bary_coords", np.full((51, 3), 1 / 3))
    with decoding(path, "an SMPL-X body", "give an SMPL-X .npz"), tempfile.TemporaryDirectory() as folder:
        # smplx reads its file with unpickling allowed, so it is given a copy that holds nothing but plain arrays.
        copy = Path(folder) / "SMPLX_NEUTRAL.npz"
        np.savez(copy, **arrays)  # type: ignore[arg-type]
        model = _quietly(
            smplx.SMPLX,
            str(copy),
            ext="npz",
            num_betas=num_betas,
            use_pca=False,
            flat_hand_mean=True,
            use_face_contour=False,
        )
        return OfficialBody(model, str(path), (28, 43))


def _quietly(build: Callable[..., torch.nn.Module], *arguments: Any, **keys: Any) -> torch.nn.Module:
    """Build a model of smplx without its default pose and shape parameters, which belong to a fixed batch."""
    off = {
        f"create_{name}": False for name in ("betas", "global_orient", "body_pose", "transl", "expression")
    }
    off |= {
        f"create_{name}": False
        for name in ("jaw_pose", "leye_pose", "reye_pose", "left_hand_pose", "right_hand_pose")
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return build(*arguments, **off, **keys)


def _given(path: str | Path | None, what: str, where: str) -> Path:
    if path is None:
        raise InputError(
            f"body.path is not set; {what} files come from {where} after registration; body=anny needs none"
        )
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is not a file; {what} files come from {where} after registration")
    return path
