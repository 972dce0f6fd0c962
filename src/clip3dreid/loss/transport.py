"""Entropic optimal transport between two sets of unit vectors: which of one goes to which of the other, and its cost.

The cost of a pair is one minus its cosine, 0..2. Every solver is called as `solver(x, y, a, b)` and built from a
configuration by its `_target_`.

Sources: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013; Peyré and Cuturi,
"Computational Optimal Transport", 2019, chapter 4; Chizat et al., "Scaling Algorithms for Unbalanced Optimal
Transport Problems", Mathematics of Computation 2018.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clip3dreid.errors import InputError
from clip3dreid.io.checks import Range, check_number
from clip3dreid.loss.term import not_negative, positive

# Down to which eps scalings are safe in float32. Let scores be cosine / eps, so within 1 / eps of 0, and potentials
# the logarithms of scalings over marginals. A solution has potentials within 1 / eps of 0 on the columns, and so
# within 2 / eps on the rows. Steps start at 0 on the columns, at most 1 / eps from it, and no step moves away from a
# solution (in the largest difference): scalings stay within exp(+-3 / eps) times their marginals. exp(75) leaves
# float32 a factor of 1e5 on either side for the latter.
_SCALING_FROM = 0.04

# Between looks at the convergence, which a device other than the CPU is spared: each would make the host wait for it.
_LOOK_EVERY = 10


class Transport(NamedTuple):
    """What a solver finds for each picture of a batch."""

    value: Tensor
    """(B,): what transport costs, differentiable in both point sets; the solver says whether entropy is in it."""
    plan: Tensor
    """(B, N, L), 0 or more, without gradient: how much of each x goes to each y."""


class Solver(Protocol):
    """What every solver of this file is, and what may take its place."""

    def __call__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve a batch of transport problems, in float32 (float64 stays) even inside autocast.

        Args:
            x: (B, N, d) of length 1.
            y: (B, L, d) of length 1.
            a: (B, N), 0 or more, without gradient: the mass of each x.
            b: (B, L), 0 or more, without gradient: the mass of each y; sums equal those of `a`, above 0.

        Returns:
            Values and plans. A point without mass, such as padding, has a plan of 0 and changes nothing.
        """


class Sinkhorn:
    """Sinkhorn's algorithm: entropic transport with both marginals kept.

    The plan P minimises `<P, C> + eps KL(P | a b)`. The value is `<P, C>` with P held fixed: by the envelope theorem,
    differentiating it gives the gradient of the whole minimum, entropy included, as far as P has converged. It is not
    the gradient of `<P, C>` with P moving along.

    The last step is on the columns: they sum to `b`, rows to `a` within the tolerance. From eps 0.04 it scales a
    matrix; below, where float32 would overflow, it works with logarithms.
    """

    def __init__(self, *, eps: float, iterations: int, tolerance: float) -> None:
        """Keep the options.

        Args:
            eps: weight of the entropy, above 0, in units of the cost; the larger, the more blurred the plan.
            iterations: most steps on rows and columns, 1 or more.
            tolerance: share of a picture's mass in the wrong row that is good enough to stop, in the worst picture
                of the batch; looked at every 10 steps. 0, and on any device but the CPU, whose host would wait for
                the answer: always all iterations.

        Raises:
            InputError: if a value is out of range.
        """
        self.eps = positive("Sinkhorn: eps", eps)
        check_number("Sinkhorn: iterations", iterations, Range(1), whole=True)
        self.iterations = iterations
        self.tolerance = not_negative("Sinkhorn: tolerance", tolerance)

    def __call__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve; see `Solver`."""
        with torch.autocast(x.device.type, enabled=False):
            x, y, a, b = _precise(x, y, a, b)
            return self.of_cosines(x @ y.mT, a, b)

    def of_cosines(self, cosine: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve, with cosines (B, N, L) of the points in their place, all in one precision and no autocast."""
        with torch.no_grad():
            if self.eps >= _SCALING_FROM:
                plan = _scaled(cosine / self.eps, a, b, self.iterations, self.tolerance)
            else:
                plan = _logarithmic(cosine / self.eps, a, b, (1.0, 1.0), self.iterations, self.tolerance)
        return Transport(_paid(plan, cosine), plan)


class UnbalancedSinkhorn:
    """Sinkhorn's algorithm where mass may be left behind: a marginal is asked for, at a price, and not kept.

    The plan P minimises `<P, C> + eps KL(P | a b) + rho KL(P's marginal | the wanted one)`, with one such penalty for
    each relaxed side. The value is `<P, C>` with P held fixed: neither entropy nor penalties are in it, yet its
    gradient is that of the whole minimum, as with `Sinkhorn`. With strict columns a picture's plan has the mass of
    `b` however its rows shift. With both sides relaxed the mass shrinks where everything is dear, so that a small
    value need not mean a good fit.

    The last step is on the columns. It works with logarithms at any eps: relaxed scalings have no bound as tight as
    `Sinkhorn`'s.
    """

    def __init__(
        self,
        *,
        eps: float,
        iterations: int,
        tolerance: float,
        rows_rho: float | None,
        columns_rho: float | None = None,
    ) -> None:
        """Keep the options.

        Args:
            eps: as in `Sinkhorn`.
            iterations: as in `Sinkhorn`.
            tolerance: as in `Sinkhorn`, with the rows that the last two steps ask for compared.
            rows_rho: price of leaving the marginal of x, above 0, in units of the cost; None: it is kept.
            columns_rho: the same for y.

        Raises:
            InputError: if a value is out of range.
        """
        self.eps = positive("UnbalancedSinkhorn: eps", eps)
        check_number("UnbalancedSinkhorn: iterations", iterations, Range(1), whole=True)
        self.iterations = iterations
        self.tolerance = not_negative("UnbalancedSinkhorn: tolerance", tolerance)
        self.damping = (
            1.0 if rows_rho is None else _damping(eps, positive("UnbalancedSinkhorn: rows_rho", rows_rho)),
            1.0
            if columns_rho is None
            else _damping(eps, positive("UnbalancedSinkhorn: columns_rho", columns_rho)),
        )

    def __call__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve; see `Solver`. The sums of `a` and `b` may differ where a side is relaxed."""
        with torch.autocast(x.device.type, enabled=False):
            x, y, a, b = _precise(x, y, a, b)
            return self.of_cosines(x @ y.mT, a, b)

    def of_cosines(self, cosine: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve; as `Sinkhorn.of_cosines`."""
        with torch.no_grad():
            # The cost itself and not the cosine: a constant changes how much mass is worth its price.
            score = (cosine - 1) / self.eps
            plan = _logarithmic(score, a, b, self.damping, self.iterations, self.tolerance)
        return Transport(_paid(plan, cosine), plan)


class GeomLoss:
    """The solver of the geomloss library: steps on both sides at once while eps is lowered to its value.

    The value is the whole minimum, `<P, C> + eps KL(P | a b)`: by its entropy larger than `Sinkhorn`'s, with the same
    gradient. The plan is made from the library's potentials; both marginals are approximate.

    Source: Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences", AISTATS 2019;
    without its debiasing, which would pull the positions of a picture apart.
    """

    def __init__(self, *, eps: float, scaling: float) -> None:
        """Build the library's loss.

        Args:
            eps: as in `Sinkhorn`.
            scaling: factor on the square root of eps from step to step, between 0 and 1; the closer to 1, the more
                steps and the better converged. 0.97 takes 62 steps to eps 0.1.

        Raises:
            InputError: if a value is out of range.
        """
        from geomloss import SamplesLoss

        self.eps = positive("GeomLoss: eps", eps)
        if not 0 < scaling < 1:
            raise InputError(f"GeomLoss: scaling is {scaling}; give a value between 0 and 1, such as 0.97")
        # The library's eps is blur ** p. The diameter is that of the unit sphere; measuring it, as the library would,
        # waits for the device.
        self.loss = SamplesLoss(
            "sinkhorn",
            p=2,
            blur=eps**0.5,
            diameter=2.0,
            scaling=scaling,
            cost=_cost,
            debias=False,
            potentials=True,
            backend="tensorized",
        )

    def __call__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Transport:
        """Solve; see `Solver`."""
        # The library switches gradients on when it is done, whatever they were: the second context puts them back.
        with torch.autocast(x.device.type, enabled=False), torch.set_grad_enabled(torch.is_grad_enabled()):
            x, y, a, b = _precise(x, y, a, b)
            f, g = self.loss(a, x, b, y)  # (B, N) and (B, L)
            value = (a * f).sum(1) + (b * g).sum(1)
            with torch.no_grad():
                exponent = (f[:, :, None] + g[:, None] - _cost(x, y)) / self.eps
                plan = a[:, :, None] * b[:, None] * exponent.exp()
        return Transport(value if torch.is_grad_enabled() else value.detach(), plan)


def to_each(solver: Solver, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Transport:
    """Transport every picture to every one of M sets of points.

    A solver of cosines solves all of them in one batch, whose operations are as many as those of one: a device takes
    longer to be told of an operation this small than to do it.

    Args:
        solver: any.
        x: (B, N, d) of length 1.
        y: (M, L, d) of length 1.
        a: (B, N) and
        b: (M, L), as in `Solver`.

    Returns:
        Values (B, M) and plans (B, M, N, L).
    """
    pictures, sets = len(a), len(b)
    if not isinstance(solver, Sinkhorn | UnbalancedSinkhorn):
        found = [
            solver(x, points.expand(pictures, -1, -1), a, masses.expand(pictures, -1))
            for points, masses in zip(y, b, strict=True)
        ]
        return Transport(
            torch.stack([one.value for one in found], 1), torch.stack([one.plan for one in found], 1)
        )
    with torch.autocast(x.device.type, enabled=False):
        x, y, a, b = _precise(x, y, a, b)
        cosine = (x @ y.flatten(0, 1).T).view(*a.shape, *b.shape).transpose(1, 2)  # (B, M, N, L)
        solved = solver.of_cosines(
            cosine.flatten(0, 1),
            a[:, None].expand(-1, sets, -1).flatten(0, 1),
            b.expand(pictures, -1, -1).flatten(0, 1),
        )
    return Transport(solved.value.view(-1, sets), solved.plan.view(-1, sets, *solved.plan.shape[1:]))


def _scaled(score: Tensor, a: Tensor, b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return the balanced plan (B, N, L) for scores (B, N, L), minus cost over eps, by scaling rows and columns."""
    kernel = score.exp()
    # Both layouts, and scalings as rows: a row times a matrix is several times faster than a matrix times a column.
    turned = kernel.mT.contiguous()
    a, b = a[:, None], b[:, None]
    u, v = a, b
    for step in range(iterations):
        rows = v @ turned  # (B, 1, N)
        if _looks(step, tolerance, score) and _misplaced(u * rows - a) <= tolerance:
            break
        u = a / rows
        v = b / (u @ kernel)
    return u.mT * kernel * v


def _logarithmic(
    score: Tensor, a: Tensor, b: Tensor, damping: tuple[float, float], iterations: int, tolerance: float
) -> Tensor:
    """Return the plan (B, N, L) for scores (B, N, L), with potentials (in units of eps) in place of scalings.

    `damping` is 1 for a side whose marginal is kept. A mass of 0 has the logarithm minus infinity, which only ever
    meets finite numbers here.
    """
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for step in range(iterations):
        wanted = -damping[0] * (score + (g + log_b)[:, None]).logsumexp(2)
        # Without damping, exp(f - wanted) is a row's sum over its mass: the same measure as in `_scaled`.
        if _looks(step, tolerance, score) and _misplaced((a * torch.expm1(f - wanted))[:, None]) <= tolerance:
            break
        f = wanted
        g = -damping[1] * (score + (f + log_a)[:, :, None]).logsumexp(1)
    return ((f + log_a)[:, :, None] + score + (g + log_b)[:, None]).exp()


def _looks(step: int, tolerance: float, score: Tensor) -> bool:
    """Return whether the convergence of scores is looked at before a step."""
    return bool(tolerance and step and step % _LOOK_EVERY == 0 and score.device.type == "cpu")


def _misplaced(excess: Tensor) -> Tensor:
    """Return the sum of absolute values of `excess` (B, 1, N) in the worst picture, a scalar."""
    return excess.abs().sum(2).amax()


def _paid(plan: Tensor, cosine: Tensor) -> Tensor:
    """Return `<plan, 1 - cosine>` for each picture, (B,)."""
    return (plan * (1 - cosine)).sum((1, 2))


def _cost(x: Tensor, y: Tensor) -> Tensor:
    return 1 - x @ y.mT


def _precise(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all four in float64 if x is, and in float32 otherwise."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype), y.to(dtype), a.to(dtype), b.to(dtype)


def _damping(eps: float, rho: float) -> float:
    return rho / (rho + eps)
