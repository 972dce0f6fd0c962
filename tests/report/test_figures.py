import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from clip3dreid.report.figures import (
    Line,
    as_svg,
    chance_cmc,
    cmc,
    draw_cmc,
    draw_distances,
    draw_lines,
    draw_map,
    thinned,
)

NASTY = "<script>alert('x')</script> $\\alpha$ & \"quoted\""


@given(st.lists(st.integers(1, 60), min_size=1), st.integers(1, 50))
def test_a_curve_is_the_share_of_queries_found_so_far(hits: list[int], most: int) -> None:
    expected = [sum(hit <= k for hit in hits) / len(hits) for k in range(1, most + 1)]
    assert cmc(np.array(hits, float), most) == pytest.approx(expected)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 200)), min_size=1, max_size=3), st.integers(1, 40)
)
def test_chance_is_that_of_drawing_without_replacement(queries: list[tuple[int, int]], most: int) -> None:
    positives = np.array([p for p, _ in queries])
    candidates = positives + np.array([negatives for _, negatives in queries])
    expected = [
        np.mean([1 - hypergeom(n, p, min(k, n)).pmf(0) for p, n in zip(positives, candidates, strict=True)])
        for k in range(1, most + 1)
    ]
    assert chance_cmc(positives, candidates, most) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 3500))
def test_a_long_line_is_thinned_to_means_of_neighbours(length: int) -> None:
    line = Line(np.arange(float(length)), np.random.default_rng(length).normal(size=length))
    found = thinned(line, 1000)
    assert len(found.x) == len(found.y) <= 1000
    if length <= 1000:
        assert found is line
    else:
        share = -(-length // 1000)
        assert found.y[0] == pytest.approx(line.y[:share].mean())
        assert found.y[-1] == pytest.approx(line.y[(len(found.y) - 1) * share :].mean())


def figures():
    line = Line(np.arange(5.0), np.array([3.0, 2.0, 1.5, 1.2, 1.1]))
    yield draw_cmc(
        {NASTY: np.linspace(0.3, 1, 10), "b": np.linspace(0.1, 0.9, 10)}, np.linspace(0.01, 0.2, 10)
    )
    yield draw_lines({NASTY: line, "b": line}, "step", NASTY, log=True)
    yield draw_lines({str(number): line for number in range(9)}, "step", "loss", step=True)
    counts = {NASTY: np.ones(4), "none": np.zeros(4)}
    yield draw_distances(counts, np.linspace(0, 1, 5), "distance")
    yield draw_map(np.random.default_rng(1).normal(size=(6, 2)), [NASTY] * 3 + ["b"] * 3, [0.5, 0.2])


def test_texts_of_a_figure_stay_texts_and_its_colours_are_the_pages() -> None:
    for number, figure in enumerate(figures()):
        text = as_svg(figure, f"f{number}")
        assert "<script" not in text
        root = ElementTree.fromstring(text)
        words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(NASTY in word for word in words) or number == 2
        assert all(key.startswith(f"f{number}-") for key in re.findall(r'\bid="([^"]*)"', text))
        assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(re.findall(r'\bid="([^"]*)"', text))
        assert "var(--ink)" in text
        # Nothing that would be black on a dark page, or white on a light one.
        assert not re.findall(r"(?:fill|stroke): #(?:000000|ffffff)", text)


def test_the_same_figure_is_drawn_in_the_same_bytes() -> None:
    one, other = (as_svg(draw_cmc({"a": np.linspace(0.1, 1, 5)}), "cmc") for _ in range(2))
    assert one == other


def test_every_line_differs_in_its_dashes_too() -> None:
    line = Line(np.arange(3.0), np.arange(3.0))
    figure = draw_lines({str(number): line for number in range(6)}, "x", "y")
    drawn = figure.axes[0].get_lines()
    assert len({str(one.get_linestyle()) + str(one._dash_pattern) for one in drawn}) == 6
