"""Hold what a training and an evaluation are told, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip3dreid.errors import InputError
from clip3dreid.inference.parts import Feature, as_feature
from clip3dreid.io.checks import Count, Positive, Seed, check
from clip3dreid.io.launch import FurtherProcesses


@dataclass(frozen=True)
class TrainSettings:
    """Say how a student is trained.

    Args:
        epochs: over the training pictures.
        seed: of everything that is drawn.
        evaluate_every: epochs between evaluations on held-out people, where there are any.
        select_on_test: keep the checkpoint with the best score on test data, the field's habit; reports say so.
        resume: a run's folder, in which the run goes on where it was stopped.
        init_from: a run's folder, a checkpoint or a saved model whose student this training starts from.
        pretrained: weights that the student starts from otherwise; None: from scratch.
        fetch: the command that gets them, for messages.
        variant: name of the method in comparisons; None: its losses.
        channels_last: keep feature maps channel by channel within a pixel: faster convolutions on GPUs, some CPUs.
        compile: compile the student: minutes to begin with, faster steps.
        matmul_precision: of float32 products while it trains, as `torch.set_float32_matmul_precision` has it:
            `highest` is float32, `high` TensorFloat-32 where a GPU has it. Evaluation ranks in float32 in any case.
        activation_checkpointing: compute the backbone's blocks a second time in the backward pass rather than keep
            what they saw: less memory, about a third more arithmetic.
        ema: decay of an exponential moving average of the weights, evaluated beside the last; None: there is none.
        body_norm: of a second stream of bodies: `separate`: by its own statistics, running ones from people alone; or
            `shared`: both streams are one batch.
        gradient_norms_every: steps between measurements of the gradient that each loss sends into the backbone; 0:
            never, and no loss may have a share.
        trusted: packages of the user's own whose classes the student may be made of.
        lr_rule: how the optimiser's rate follows the batch, see `optimizer.by_rule`; None: it does not.
        base_batch: pictures of the batch that the rate is meant for, where there is a rule.

    Raises:
        InputError: if a value is none of these, or two do not go together.
    """

    epochs: Positive = 60
    seed: Seed = 1
    evaluate_every: Positive = 5
    select_on_test: bool = False
    resume: Path | None = None
    init_from: Path | None = None
    pretrained: Path | None = None
    fetch: str | None = None
    variant: str | None = None
    channels_last: bool = False
    compile: bool = False
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    activation_checkpointing: bool = False
    ema: float | None = None
    body_norm: Literal["separate", "shared"] = "separate"
    gradient_norms_every: Count = 200
    trusted: tuple[str, ...] = ()
    lr_rule: Literal["linear", "sqrt"] | None = None
    base_batch: Positive = 64

    def __post_init__(self) -> None:
        check(self)
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema={self.ema:g} must be a number between 0 and 1, such as 0.999, or null")
        if self.compile and self.activation_checkpointing:
            raise InputError(
                "compile=true and activation_checkpointing=true do not go together: the compiler cannot see into "
                "blocks that are computed twice; choose one"
            )


@dataclass(frozen=True)
class RankingSettings:
    """Say how queries and galleries are compared.

    Args:
        metric: distance of the ranking.
        flip: embed a picture and its mirror image and add the two. None: in training yes, in an evaluation what the
            model's file says, which of models of ours is yes.
        feature: what pictures are compared by; anything that `inference.parts.as_feature` takes. None: in training
            the embedding, in an evaluation what the model's file says.
        rerank: a re-ranking of `retrieval.rerank`; None: none. In training it is that of the final test.
        open_set: false positive rates at which the true positive rate is reported; None: none. Likewise.
        prefix: what stands before the fields' names in messages.

    Raises:
        InputError: if a value is none of these.
    """

    metric: Literal["cosine", "euclidean"] = "cosine"
    flip: bool | None = None
    feature: Feature | None = None
    rerank: Any = None
    open_set: tuple[float, ...] | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        check(self, self.prefix)
        if self.feature is not None:
            object.__setattr__(self, "feature", as_feature(self.feature, f"{self.prefix}feature"))

    @property
    def mirrors(self) -> bool:
        """Return whether mirror images are looked at too, where no model's file is asked."""
        return self.flip is not False


SETTINGS = TrainSettings()
RANKING = RankingSettings()
"""Where nothing is said."""


@dataclass(frozen=True)
class Invocation:
    """Say how a run was started, where a command did it; a notebook's run has none.

    The command has claimed the run's folder, and keeps it locked.

    Args:
        resume: the command that goes on with the run, for messages.
        processes: what starts its further processes.
        alone: whether it is the command's only run: a scheduler that starts the command again goes on with it.
        foreseen: whether an error is one that the command explains in a line, and ends with status 2.
        renamed: puts the config of a run that goes on under the keys of now.
        accepted: called by the first process of a run that goes on, once nothing is wrong with what is asked for.
        student: what the command calls the student.
    """

    resume: str
    processes: FurtherProcesses
    alone: bool
    foreseen: Callable[[BaseException], object]
    renamed: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    accepted: Callable[[], None]
    student: str
