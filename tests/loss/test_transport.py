import math

import numpy as np
import ot
import pytest
import torch
from torch.nn import functional as F

from clip3dreid.errors import InputError
from clip3dreid.loss import transport
from clip3dreid.loss.transport import GeomLoss, Sinkhorn, UnbalancedSinkhorn

from .cases import numeric_gradient, on_circle

# Both forms: scaling from 0.04 on, logarithms below.
EPS = [1.0, 0.3, 0.1, 0.04, 0.03, 0.02]


def units(*shape, seed=0):
    """Random vectors of length 1, in double."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def masses(*shape, seed=0):
    """Random positive masses that add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def problem(pictures=3, positions=7, tokens=4, width=5):
    x, y = units(pictures, positions, width, seed=1), units(pictures, tokens, width, seed=2)
    return x, y, masses(pictures, positions, seed=3), masses(pictures, tokens, seed=4)


def converged(eps):
    return Sinkhorn(eps=eps, iterations=20000, tolerance=1e-12)


def relaxed(rows_rho, columns_rho=None, eps=0.1):
    return UnbalancedSinkhorn(
        eps=eps, iterations=20000, tolerance=1e-12, rows_rho=rows_rho, columns_rho=columns_rho
    )


def cost(x, y):
    return 1 - torch.einsum("bnd,bld->bnl", x, y)


def entropy(plan, a, b):
    """KL(P | a b), which is what eps weighs, for each picture."""
    reference = a[:, :, None] * b[:, None]
    return (torch.xlogy(plan, plan / reference) - plan + reference).sum((1, 2))


def reference_plans(x, y, a, b, eps):
    plans = [
        ot.sinkhorn(ra, rb, rc, eps, method="sinkhorn_log", numItermax=20000, stopThr=1e-12)
        for ra, rb, rc in zip(a.numpy(), b.numpy(), cost(x, y).numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(plans))


ALL = {
    "scaled": Sinkhorn(eps=0.1, iterations=200, tolerance=0.0),
    "logarithmic": Sinkhorn(eps=0.03, iterations=200, tolerance=0.0),
    "unbalanced": UnbalancedSinkhorn(eps=0.1, iterations=200, tolerance=0.0, rows_rho=0.5),
    "geomloss": GeomLoss(eps=0.1, scaling=0.97),
}
solvers = pytest.mark.parametrize("solver", ALL.values(), ids=ALL)


@pytest.mark.parametrize("eps", EPS)
def test_plan_and_value_are_those_of_an_independent_solver(eps):
    x, y, a, b = problem()
    found, plan = converged(eps)(x, y, a, b), reference_plans(x, y, a, b, eps)
    torch.testing.assert_close(found.plan, plan, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.value, (plan * cost(x, y)).sum((1, 2)), rtol=0, atol=1e-6)


def test_two_points_on_two_by_hand():
    # Costs 0 on the diagonal and 1 beside it: the plan is their exponential, made to add up to 1.
    x = on_circle(0, 90)[None]
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    for eps in (1.0, 0.02):
        found = Sinkhorn(eps=eps, iterations=1, tolerance=0.0)(x, x, half, half)
        crossing = 0.5 / (1 + math.exp(1 / eps))
        torch.testing.assert_close(
            found.plan[0], torch.tensor([[0.5 - crossing, crossing], [crossing, 0.5 - crossing]]).double()
        )
        assert found.value.item() == pytest.approx(2 * crossing, rel=1e-9)


def test_a_set_on_itself_costs_the_entropic_minimum_and_not_nothing():
    x = units(2, 6, 4)
    a = masses(2, 6)
    found, plan = converged(0.2)(x, x, a, a), reference_plans(x, x, a, a, 0.2)
    torch.testing.assert_close(found.value, (plan * cost(x, x)).sum((1, 2)), rtol=0, atol=1e-6)
    assert (found.value > 1e-3).all()


def test_with_little_entropy_it_is_exact_transport():
    x, y, a, b = problem()
    exact = [ot.emd2(ra, rb, rc) for ra, rb, rc in zip(a.numpy(), b.numpy(), cost(x, y).numpy(), strict=True)]
    found = Sinkhorn(eps=0.003, iterations=20000, tolerance=0.0)(x, y, a, b)
    torch.testing.assert_close(found.value, torch.tensor(exact, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("iterations", [1, 3, 40])
def test_both_forms_take_the_same_steps(monkeypatch, iterations):
    x, y, a, b = problem()
    solver = Sinkhorn(eps=transport._SCALING_FROM, iterations=iterations, tolerance=0.0)
    scaled = solver(x, y, a, b)
    monkeypatch.setattr(transport, "_SCALING_FROM", 1.0)
    torch.testing.assert_close(solver(x, y, a, b), scaled, rtol=1e-9, atol=1e-12)


def test_the_scaling_form_holds_in_single_precision_where_it_takes_over():
    # As far apart as can be: all positions but one lie opposite to all tokens but one, which has hardly any mass.
    x = on_circle(0, 0, 0, 180)[None]
    y = on_circle(180, 180, 0)[None]
    a = torch.tensor([[0.1, 0.3, 0.6 - 1e-5, 1e-5]], dtype=torch.float64)
    b = torch.tensor([[0.5, 0.5 - 1e-5, 1e-5]], dtype=torch.float64)
    solver = Sinkhorn(eps=transport._SCALING_FROM, iterations=50, tolerance=0.0)
    double, single = solver(x, y, a, b), solver(x.float(), y.float(), a.float(), b.float())
    torch.testing.assert_close(single.plan.double(), double.plan, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_scaling_form_holds_in_single_precision_for_any_sides_and_steep_masses(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (on_circle(*(180 * torch.randint(2, (n,), generator=generator)).tolist())[None] for n in (9, 5))
    a, b = (torch.softmax(3 * torch.randn(1, n, generator=generator).double(), dim=1) for n in (9, 5))
    for iterations in (1, 10, 300):
        solver = Sinkhorn(eps=transport._SCALING_FROM, iterations=iterations, tolerance=0.0)
        double, single = solver(x, y, a, b), solver(x.float(), y.float(), a.float(), b.float())
        torch.testing.assert_close(single.plan.double(), double.plan, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("eps", [0.3, 0.1, 0.02])
@pytest.mark.parametrize("side", [0, 1])
def test_gradient_of_the_value_is_that_of_the_whole_minimum(eps, side):
    x, y, a, b = problem(pictures=2, positions=4, tokens=3, width=3)
    points = [x, y]

    def minimum(moved):
        at = [*points]
        at[side] = moved
        plan = converged(eps)(*at, a, b).plan
        return ((plan * cost(*at)).sum((1, 2)) + eps * entropy(plan, a, b)).sum()

    expected = numeric_gradient(minimum, points[side])
    points[side] = points[side].clone().requires_grad_()
    converged(eps)(*points, a, b).value.sum().backward()
    torch.testing.assert_close(points[side].grad, expected, rtol=1e-4, atol=1e-6)


@solvers
def test_no_gradient_flows_through_the_plan(solver):
    x, y, a, b = problem()
    found = solver(x.requires_grad_(), y, a, b)
    assert found.value.requires_grad
    assert not found.plan.requires_grad


@solvers
def test_order_of_points_does_not_matter(solver):
    x, y, a, b = problem()
    rows, columns = torch.tensor([3, 0, 6, 2, 5, 1, 4]), torch.tensor([2, 0, 3, 1])
    found, turned = solver(x, y, a, b), solver(x[:, rows], y[:, columns], a[:, rows], b[:, columns])
    torch.testing.assert_close(turned.value, found.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(turned.plan, found.plan[:, rows][:, :, columns], rtol=1e-9, atol=1e-15)


@solvers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_without_mass_are_as_good_as_gone(solver, dtype):
    x, y, a, b = (side.to(dtype) for side in problem())
    a[:, 0] = b[:, 3] = 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    gone = solver(x[:, 1:], y[:, :3], a[:, 1:], b[:, :3])
    points = x.clone().requires_grad_()
    there = solver(points, y, a, b)
    torch.testing.assert_close(there.value, gone.value)
    torch.testing.assert_close(there.plan[:, 1:, :3], gone.plan)
    assert torch.count_nonzero(there.plan[:, 0]) == torch.count_nonzero(there.plan[:, :, 3]) == 0
    there.value.sum().backward()
    assert torch.isfinite(points.grad).all()
    assert torch.count_nonzero(points.grad[:, 0]) == 0


@solvers
def test_pictures_of_a_batch_are_solved_apart(solver):
    x, y, a, b = problem()
    whole = solver(x, y, a, b)
    for row in range(len(x)):
        part = slice(row, row + 1)
        alone = solver(x[part], y[part], a[part], b[part])
        torch.testing.assert_close(alone.value, whole.value[part], rtol=1e-9, atol=0)


@solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_half_precision_change_nothing_but_the_inputs(solver, dtype):
    x, y, a, b = (side.to(dtype) for side in problem())
    plain = solver(x.float(), y.float(), a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solver(x, y, a, b)
    assert inside.value.dtype == inside.plan.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


@pytest.mark.parametrize("eps", [0.1, 0.03])
def test_columns_are_kept_after_every_step_and_rows_within_the_tolerance(eps):
    x, y, a, b = problem()
    for tolerance in (1e-5, 1e-2):
        plan = Sinkhorn(eps=eps, iterations=5000, tolerance=tolerance)(x, y, a, b).plan
        torch.testing.assert_close(plan.sum(1), b, rtol=1e-9, atol=0)
        assert tolerance / 1e4 < (plan.sum(2) - a).abs().sum(1).max() <= tolerance
    hasty = Sinkhorn(eps=eps, iterations=1, tolerance=0.0)(x, y, a, b).plan
    torch.testing.assert_close(hasty.sum(1), b, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "solver",
    [
        lambda n, tolerance: Sinkhorn(eps=1.0, iterations=n, tolerance=tolerance),
        lambda n, tolerance: UnbalancedSinkhorn(eps=1.0, iterations=n, tolerance=tolerance, rows_rho=None),
    ],
)
def test_convergence_is_looked_at_every_ten_steps_and_never_without_a_tolerance(monkeypatch, solver):
    inputs, looks, real = problem(), [], transport._misplaced
    monkeypatch.setattr(transport, "_misplaced", lambda excess: looks.append(real(excess)) or looks[-1])
    early = solver(1000, 1e-3)(*inputs)
    assert len(looks) == 1
    assert looks[0] <= 1e-3
    torch.testing.assert_close(early, solver(10, 0.0)(*inputs), rtol=0, atol=0)
    looks.clear()
    solver(35, 1e-30)(*inputs)
    assert len(looks) == 3
    looks.clear()
    solver(35, 0.0)(*inputs)
    assert not looks


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.03])
def test_geomloss_comes_closer_to_the_whole_minimum_and_its_gradient_the_slower_eps_falls(eps):
    x, y, a, b = problem()
    points = [side.clone().requires_grad_() for side in (x, y)]
    ours = converged(eps)(*points, a, b)
    whole = ours.value + eps * entropy(ours.plan, a, b)
    gradients = torch.autograd.grad(ours.value.sum(), points)
    # Few of its steps are taken at the last eps: at 0.97 and eps 0.1, these random points leave a gradient that is
    # off by a fifth of its largest number, and at 0.999 by a hundredth.
    for scaling, value, gradient, plan in ((0.97, 1e-2, 8e-2, 6e-2), (0.999, 2e-4, 3e-3, 2e-3)):
        theirs = GeomLoss(eps=eps, scaling=scaling)(*points, a, b)
        torch.testing.assert_close(theirs.value, whole, rtol=0, atol=value)
        torch.testing.assert_close(theirs.plan, ours.plan.detach(), rtol=0, atol=plan)
        found = torch.autograd.grad(theirs.value.sum(), points)
        torch.testing.assert_close(found, gradients, rtol=0, atol=gradient)


def test_geomloss_leaves_gradients_switched_off_where_they_were():
    x, y, a, b = problem()
    with torch.no_grad():
        found = GeomLoss(eps=0.1, scaling=0.9)(x.requires_grad_(), y, a, b)
        assert not torch.is_grad_enabled()
    assert not found.value.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rows_rho", [0.05, 0.5, None])
@pytest.mark.parametrize("columns_rho", [0.3, None])
def test_unbalanced_plan_is_that_of_an_independent_solver(rows_rho, columns_rho):
    x, y, a, b = problem()
    found = relaxed(rows_rho, columns_rho)(x, y, a, b)
    prices = (math.inf if rows_rho is None else rows_rho, math.inf if columns_rho is None else columns_rho)
    for row in range(len(x)):
        plan = ot.unbalanced.sinkhorn_unbalanced(
            a[row].numpy(),
            b[row].numpy(),
            cost(x, y)[row].numpy(),
            reg=0.1,
            reg_m=prices,
            reg_type="kl",
            numItermax=20000,
            stopThr=1e-13,
        )
        torch.testing.assert_close(found.plan[row], torch.from_numpy(plan), rtol=0, atol=1e-7)


def test_unbalanced_becomes_balanced_as_leaving_mass_becomes_dear():
    x, y, a, b = problem()
    balanced = converged(0.1)(x, y, a, b)
    torch.testing.assert_close(relaxed(None)(x, y, a, b), balanced, rtol=0, atol=1e-9)
    torch.testing.assert_close(relaxed(1e5, 1e5)(x, y, a, b), balanced, rtol=0, atol=1e-5)


def test_relaxed_positions_leave_out_what_fits_no_token_and_keep_every_token():
    # Two positions at the tokens, and one opposite to both.
    x, y = on_circle(0, 40, 200)[None], on_circle(0, 40)[None]
    a, b = torch.full((1, 3), 1 / 3).double(), torch.full((1, 2), 1 / 2).double()
    plan = relaxed(0.2)(x, y, a, b).plan[0]
    torch.testing.assert_close(plan.sum(0), b[0])
    assert plan[2].sum() < 0.01
    torch.testing.assert_close(plan[0].sum(), plan[1].sum())


def test_gradient_of_the_unbalanced_value_is_that_of_the_whole_minimum():
    x, y, a, b = problem(pictures=1, positions=4, tokens=3, width=3)
    solver, eps, rho = relaxed(0.4), 0.1, 0.4

    def minimum(moved):
        plan = solver(moved, y, a, b).plan
        rows = plan.sum(2)
        left = (torch.xlogy(rows, rows / a) - rows + a).sum()
        return (plan * cost(moved, y)).sum() + eps * entropy(plan, a, b).sum() + rho * left

    points = x.clone().requires_grad_()
    solver(points, y, a, b).value.sum().backward()
    torch.testing.assert_close(points.grad, numeric_gradient(minimum, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sinkhorn(eps=0, iterations=9, tolerance=0), "Sinkhorn: eps=0 must be a number above 0"),
        (
            lambda: Sinkhorn(eps=0.1, iterations=0, tolerance=0),
            "Sinkhorn: iterations=0 must be a whole number, 1 or more",
        ),
        (
            lambda: Sinkhorn(eps=0.1, iterations=2.5, tolerance=0),
            "Sinkhorn: iterations=2.5 must be a whole number, 1 or more",
        ),
        (
            lambda: Sinkhorn(eps=0.1, iterations=9, tolerance=-1),
            "Sinkhorn: tolerance=-1 must be a number, 0 or more",
        ),
        (lambda: relaxed(0), "UnbalancedSinkhorn: rows_rho=0 must be a number above 0"),
        (lambda: relaxed(1, -2), "UnbalancedSinkhorn: columns_rho=-2 must be a number above 0"),
        (lambda: relaxed(1, eps=math.nan), "UnbalancedSinkhorn: eps=nan must be a number above 0"),
        (lambda: GeomLoss(eps=-1, scaling=0.9), "GeomLoss: eps=-1 must be a number above 0"),
        (lambda: GeomLoss(eps=0.1, scaling=1), "GeomLoss: scaling is 1; give"),
    ],
)
def test_options_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=f"^{message}"):
        build()
