"""Guide by textureless bodies: a second stream of pictures, and the space of shapes that they are of."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from clip3dreid.body.smpl import BodyModel, body_facts
from clip3dreid.data.bodies import BodyStream, BodyTable, read_bodies
from clip3dreid.data.datamodule import check_view
from clip3dreid.data.images import TrainView
from clip3dreid.errors import InputError
from clip3dreid.guidance.guides import Given, Same
from clip3dreid.guidance.settings import BodySettings
from clip3dreid.loss.term import Need
from clip3dreid.types import BodySpace

log = logging.getLogger(__name__)


class BodyGuide:
    """Textureless bodies whose shapes are known, for losses that need a `BodySpace`.

    Args:
        settings: which bodies.
        body: makes the body model whose coefficients they are.
        body_file: file or name that it is read from, for the checkpoint's card.
        view: makes the augmentation of their pictures.
        height: H of the people's pictures, in pixels; both streams go through one student.
        width: W of them.
        square: whether people's pictures are padded to squares.
        seed: of the exchange of shapes, where `settings.shuffled` asks for it.
    """

    gives: ClassVar[Need] = BodySpace
    same: ClassVar[Same] = {("body", "sha256"): "body", ("bodies", "sha256"): "bodies.root"}

    def __init__(
        self,
        settings: BodySettings,
        body: Callable[[], BodyModel],
        view: Callable[[], TrainView],
        *,
        body_file: str,
        height: int,
        width: int,
        square: bool = False,
        seed: int = 1,
    ) -> None:
        self._settings, self._body, self._view = settings, body, view
        self._file = body_file
        self._height, self._width, self._square = height, width, square
        self._seed = seed

    def prepare(self) -> Callable[[], Given]:
        """Read the bodies; nothing of this takes long.

        Raises:
            InputError: if there are none, or they fit neither the body model nor the people's pictures.
        """
        table = read_bodies(self._settings.root, dressed=self._settings.dressed)
        body = self._body()
        if table.betas.shape[1] != body.num_betas:
            raise InputError(
                f"the bodies in {self._settings.root} have {table.betas.shape[1]} shape coefficients and body "
                f"{body.name} has {body.num_betas}; give the body they were made with (body=NAME), or make them anew"
            )
        if self._settings.shuffled:
            log.warning("control: every textureless body has another's shape (bodies.shuffled=true)")
            table = table.shuffled(self._seed)
        given = Given(
            says=body_space(body, table),
            facts=self._facts(body, table),
            bodies=BodyStream(table, self._settings.batch, self._checked_view()),
            lines=(f"{table.bodies:,} bodies from {self._settings.root}",),
        )
        return lambda: given

    def _checked_view(self) -> TrainView:
        view = self._view()
        why = "both streams go through one student"
        check_view("bodies.view", view, self._height, self._width, self._square, why)
        return view

    def _facts(self, body: BodyModel, table: BodyTable) -> dict[str, Any]:
        return {
            "body": body_facts(self._file, body.num_betas),
            "bodies": {"count": table.bodies, "sha256": hashlib.sha256(table.betas.tobytes()).hexdigest()},
        }


def body_space(body: BodyModel, table: BodyTable) -> BodySpace:
    """Return the shape space of a body model, with the moments of the bodies that are trained on."""
    _, first = np.unique(table.body, return_index=True)
    mean, deviation = moments(table.betas[first])
    with torch.no_grad():
        # Linear in the coefficients, whichever body model it is: the rest pose of each unit says it all.
        template = body.rest(torch.zeros(1, body.num_betas)).vertices[0]
        directions = (body.rest(torch.eye(body.num_betas)).vertices - template).permute(1, 2, 0)
    return BodySpace(template, directions.contiguous(), mean, deviation, table.bodies)


def moments(betas: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (K,) of coefficients (bodies, K); 1 for one that never varies."""
    mean, deviation = betas.mean(0, dtype=np.float64), betas.std(0, dtype=np.float64)
    varies = deviation > 1e-6
    return torch.from_numpy(mean).float(), torch.from_numpy(np.where(varies, deviation, 1.0)).float()
