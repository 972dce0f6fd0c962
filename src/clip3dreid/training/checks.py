"""Check that losses take part, and that norms see enough pictures, before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import nn

from clip3dreid.data.clips import ClipSettings
from clip3dreid.errors import InputError
from clip3dreid.inference.parts import Feature
from clip3dreid.io.checks import alternatives
from clip3dreid.loss.weighted import LossEntry, WeightedLosses, compares, needs, teaches

log = logging.getLogger(__name__)

BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d
"""What sees the batch of its own process alone."""


def check_starts(losses: Mapping[str, LossEntry], epochs: int) -> None:
    """Refuse a loss that would never take part.

    Raises:
        InputError: naming it, or if an entry is wrong.
    """
    needs(losses)  # whose entries are whole
    for name, entry in losses.items():
        if entry["weight"] > 0 and entry["start_epoch"] >= epochs:
            raise InputError(
                f"loss.{name} would start at epoch {entry['start_epoch']} of a training of {epochs} epochs, so "
                f"never; lower loss.{name}.start_epoch (of clothes losses: clothes_start_epoch) or raise epochs"
            )


def run_feature(asked: Feature | None, losses: Mapping[str, LossEntry]) -> Feature:
    """Return what a run compares pictures by: what it is asked for, or else the embedding and what its losses add.

    Raises:
        InputError: as `WeightedLosses`, for entries that are wrong.
    """
    if asked is not None:
        return asked
    return Feature([("embedding", 1.0), *((part, 1.0) for part in compares(losses))])


def check_feature(
    feature: Feature, losses: Mapping[str, LossEntry], heads: Collection[str] | None = None
) -> None:
    """Refuse a retrieval feature that a model of these losses cannot have.

    Args:
        feature: what pictures are to be compared by.
        losses: of the run.
        heads: names of the tensors that the losses ship, once they are built; None: before that, when only what the
            losses' classes say can be held against the feature.

    Raises:
        InputError: naming the first part that no loss teaches.
    """
    if heads is None:
        if (taught := teaches(losses)) is None:
            return
        heads = [f"{head}.weight" for head in taught]
    feature.check_learnt(heads, "a model of these losses", "retrieval.feature")


def check_shares(losses: WeightedLosses, backbone: nn.Module, every: int) -> None:
    """Refuse shares of a gradient that there is not, or that is never measured, and say which there are.

    Args:
        losses: of the run.
        backbone: of the student.
        every: steps between measurements; 0: never.

    Raises:
        InputError: naming the first term with a share.
    """
    if losses.shares is None:
        return
    shares = losses.shares.shares
    name, share = next(iter(shares.items()))
    if not every:
        raise InputError(
            f"loss.{name}.share={share:g} needs gradients measured; set gradient_norms_every, or give "
            f"loss.{name}.weight and loss.{name}.share=null"
        )
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise InputError(
            f"loss.{name}.share={share:g} is a share of identity's gradient in the backbone, which has nothing to "
            f"train; give loss.{name}.weight and loss.{name}.share=null"
        )
    for name, share in shares.items():
        log.info(
            "loss.%s has a share of %g of identity's gradient; its weight of %g counts until that is measured",
            name,
            share,
            losses.entries[name]["weight"],
        )


def check_clips(student: nn.Module, clips: ClipSettings | None, body_norm: str = "separate") -> None:
    """Refuse clips that a student cannot look at.

    Args:
        student: the model.
        clips: how they are cut; None: there are none.
        body_norm: whether a stream of bodies is normalised with them.

    Raises:
        InputError: naming the key.
    """
    if clips is None or clips.frames == 1:
        return
    if not getattr(student, "takes_clips", False):
        raise InputError(
            f"datamodule.clips.frames={clips.frames}, and the student looks at pictures; take one of clips "
            "(model/student=c2d_resnet50), or datamodule.clips.frames=1 for its mean over all frames"
        )
    if body_norm == "shared":
        raise InputError(
            "bodies.batch_norm=shared makes one batch of bodies and people, and clips are no pictures; set separate"
        )


def check_norms(
    student: nn.Module,
    losses: nn.Module,
    *,
    rows: Sequence[int],
    pictures: int,
    bodies: int,
    body_norm: Literal["separate", "shared"],
    ghost_group: int | None,
    synchronised: bool = False,
) -> None:
    """Refuse batches of which a norm sees one picture, and say where it sees others than one process would show it.

    Args:
        student: with its norms.
        losses: likewise.
        rows: pictures of people of a global batch that each process has.
        pictures: K, pictures of each person.
        bodies: S, bodies of a global batch; 0: there are none.
        body_norm: whether bodies are normalised with the people.
        ghost_group: pictures that a norm of the student sees at a time; None: all of a process.
        synchronised: whether norms of all processes see the global batch (`trainer.sync_batchnorm`).

    Raises:
        InputError: naming the sizes; also where batch norm would see pictures of one person and no others.
    """
    processes, least = len(rows), min(rows)
    people = sum(rows) // pictures
    if bodies and len(set(rows)) > 1:
        raise InputError(
            f"datamodule.people={people} cannot be divided among {processes} processes, which a run with a stream of "
            f"bodies has to; make it a multiple of {processes}, or change the number of processes"
        )
    mine = bodies // processes
    shared = mine if body_norm == "shared" else 0
    for part, seen in ((student, least + shared), (losses, least)):
        # Norms of maps have a picture's positions to go by.
        if seen == 1 and any(isinstance(norm, nn.BatchNorm1d) and norm.training for norm in part.modules()):
            raise InputError(
                f"datamodule.people={people} and datamodule.pictures={pictures} in {processes} process(es) leave "
                "batch norm one picture at a time, which has no variance; raise one of the two"
            )
    trained = any(isinstance(norm, BATCH_NORMS) and norm.training for norm in student.modules())
    if processes > 1 and least <= pictures and trained and not synchronised:
        raise InputError(
            f"datamodule.people={people} on {processes} processes leaves one of them a single person, of whom alone "
            f"batch norm would make its statistics; give datamodule.people={2 * processes} or more, or at most "
            f"{max(1, people // 2)} process(es)"
        )
    if bodies and (mine == 1 or (ghost_group is not None and mine > ghost_group and mine % ghost_group == 1)):
        raise InputError(
            f"{mine} bodies a process leave a batch-norm group of one picture, which has no variance; "
            "change bodies.batch"
        )
    if ghost_group is None:
        return
    if bodies and body_norm == "shared":
        raise InputError(
            f"bodies.batch_norm=shared needs model.student.ghost_group=null: groups of {ghost_group} pictures would "
            "hold people or bodies, never both"
        )
    for batch in rows:
        if batch > ghost_group and batch % ghost_group == 1:
            raise InputError(
                f"{batch} pictures a process leave a batch-norm group of one picture (model.student.ghost_group="
                f"{ghost_group}), which has no variance; change datamodule.people, datamodule.pictures or the group"
            )
    if processes > 1 and any(batch % ghost_group for batch in rows):
        log.warning(
            "batch norm sees %s pictures a process, no multiple of model.student.ghost_group=%d: another number "
            "of processes would not train the same model",
            alternatives(sorted(set(rows))),
            ghost_group,
        )
