"""Say what every loss term is: a module that owns its head and reads features and labels."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from clip3dreid.io.checks import Range, check_number
from clip3dreid.types import Batch, Features

Need = type
"""What a guide gives: the type by which `Dimensions.guide` finds it."""


class Term(nn.Module):
    """One term of the training loss.

    A term is built by `Term(dimensions, **config)` and owns whatever head it needs. `WeightedLosses` calls it outside
    autocast with `pooled` and `embedding` in float32 (a softmax of scale 16 or a distance loses too much
    in half precision); `map` comes as the student left it.

    Attributes:
        needs: what must be there beside the pictures and their labels, by the type that `Dimensions.guide` gives:
            `TextTargets`, `TeacherSpace` (and `Batch.targets["teacher"]`), `BodySpace` (and `Batch.bodies` with their
            features). What no term of a run needs is not read, embedded or drawn.
        teaches: heads that the term may ship (`heads`), by the first part of their names: `joint`, `shape` or
            `teacher`. What a run's features are to be made of is held against it before anything is read.
        compares: parts of a retrieval feature that stand beside the embedding where a run is not told what pictures
            are compared by: what the term teaches has been found to tell people apart.
        observed: scalars of the last forward pass that are logged and no part of the loss.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    teaches: ClassVar[frozenset[str]] = frozenset()
    compares: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[str, Tensor] = {}

    def forward(
        self, features: Features, batch: Batch, bodies: Features | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the unweighted loss of a batch.

        Args:
            features: what the student makes of the people's pictures.
            batch: labels and targets of these pictures, and labels of the bodies.
            bodies: what the student makes of `batch.bodies`; None where there is no second stream.

        Returns:
            A scalar, or named scalar parts, which `WeightedLosses` logs and adds up.
        """
        raise NotImplementedError

    def ahead(self, batch: Batch) -> dict[str, Tensor]:
        """Count what of a batch must be counted, while its labels are on the CPU: nobody waits for the device then.

        Args:
            batch: of the people's pictures, before it goes to the device.

        Returns:
            What `forward` finds in `Batch.targets`; it does without where it was called on its own.
        """
        return {}

    def connect(self, others: Mapping[str, "Term"]) -> None:
        """Connect the term to another whose head it reads; called once all terms are built.

        Raises:
            InputError: if that other term is not there.
        """

    def unscheduled_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters whose learning rate stays constant while the schedule moves the others."""
        yield from ()

    def heads(self) -> dict[str, Tensor]:
        """Return tensors that the trained model is shipped with: what describes, shapes or compares pictures.

        `joint.weight` (d, C), `joint.bias` (d,), `joint.centre` (d,) and `joint.words` (W, d): a position of the map
        goes into the teacher's space, where words are compared with it after `joint.centre` is taken from them;
        `joint.usual` and `joint.spread` (W,) say what each word scores on the training pictures, mean and deviation.
        `shape.weight` (K, D) and `shape.bias` (K,): from the embedding to shape coefficients; `shape.usual` and
        `shape.spread` (K,), mean and deviation of the training bodies', by which coefficients are compared: a
        component with spread 0 is not learnt, and is not compared.
        `teacher.weight` (d, D) and `teacher.bias` (d,): from the embedding to the teacher's view of a whole picture.
        """
        return {}


def between_person_variance(vectors: Tensor, person: Tensor) -> Tensor:
    """Return how far apart people are: variance of their mean directions, summed over dimensions; 0 (collapsed) to 1.

    Args:
        vectors: (B, d), of any length.
        person: (B,) int64.
    """
    vectors = F.normalize(vectors.detach(), dim=-1)
    # One row a picture and not a person, so that nobody waits for the device to count people; in batches of P x K
    # pictures it is the same.
    same = (person[:, None] == person).to(vectors.dtype)
    means = same @ vectors / same.sum(1, keepdim=True)
    return (means - means.mean(0)).square().sum(1).mean()


def fraction(name: str, value: float) -> float:
    """Return `value` if it lies in 0..1.

    Raises:
        InputError: if it does not; `name` says whose value it is.
    """
    check_number(name, value, Range(0, 1))
    return value


def positive(name: str, value: float) -> float:
    """Return `value` if it is above 0.

    Raises:
        InputError: if it is not; `name` says whose value it is.
    """
    check_number(name, value, Range(0, above=True))
    return value


def not_negative(name: str, value: float) -> float:
    """Return `value` if it is 0 or more.

    Raises:
        InputError: if it is not; `name` says whose value it is.
    """
    check_number(name, value, Range(0))
    return value
