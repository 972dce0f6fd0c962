"""What every loss term is: a module that owns its head and reads features and labels."""

from collections.abc import Iterator

from torch import Tensor, nn

from clip3dreid.errors import InputError
from clip3dreid.types import Batch, Features


class Term(nn.Module):
    """One term of the training loss.

    A term is built by `Term(dimensions, **config)` and owns whatever head it needs. `Total` calls it outside
    autocast with `pooled` and `embedding` in float32 (a softmax of scale 16 or a distance loses too much
    in half precision); `map` comes as the student left it.
    """

    def forward(self, features: Features, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Returns the unweighted loss as a scalar, or as named scalar parts that `Total` logs and adds up."""
        raise NotImplementedError

    def unscheduled_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters whose learning rate stays constant while the schedule moves the others."""
        yield from ()


def fraction(name: str, value: float) -> float:
    """Returns `value` if it lies in 0..1.

    Raises:
        InputError: if it does not; `name` says whose value it is.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}; give a value in 0..1")
    return value


def positive(name: str, value: float) -> float:
    """Returns `value` if it is above 0.

    Raises:
        InputError: if it is not; `name` says whose value it is.
    """
    if not value > 0:
        raise InputError(f"{name} is {value}; give a value above 0")
    return value
