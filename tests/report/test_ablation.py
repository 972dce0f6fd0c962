import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip3dreid.report.ablation import BLUE, GREY, Score, Variant, draw, header, page, rows
from tests.processes import PATIENCE_S

NOTHING = Score(0.5, None)
CE = Variant("ce", 3, {"R1": Score(0.412, 0.013), "mAP": Score(0.3, 0.01)}, 1.0, 1.0)
LOCAL = Variant(
    "local_2",
    2,
    {
        "R1": Score(0.45, 0.02, (0.03, 0.05), (0.004, 0.07), (-0.087, 0.167)),
        "mAP": Score(0.2999, 0.01, (0.0001, -0.0003), (-0.01, 0.01), (-0.0026, 0.0024)),
    },
    1.25,
    2.5,
)
ALONE = Variant("all", 1, {"R1": NOTHING, "mAP": NOTHING})


def text(*variants: Variant, **changed: Any) -> str:
    keys: dict[str, Any] = {
        "level": 0.95,
        "resamples": 10_000,
        "facts": {"data": "ltcc", "protocol": "clothes_changing"},
        "notes": ["all has no partner"],
        "runs": [["ce", "1", "/data/a|b", "41.2", "30.0", "runs/0"]],
        "figure": "compare.png",
    }
    return page(variants, "ce", **keys | changed)


def test_the_table_has_scores_differences_and_intervals_in_points() -> None:
    names = header([CE, LOCAL], "ce", 0.95)
    one, other, alone = rows([CE, LOCAL, ALONE])
    assert len(names) == len(one) == len(other) == len(alone) == 12
    assert one == ["ce", "3", "41.2 ± 1.3", "", "", "", "30.0 ± 1.0", "", "", "", "1.00", "1.00"]
    assert other[:6] == ["local_2", "2", "45.0 ± 2.0", "+4.0", "+0.4 to +7.0", "-8.7 to +16.7"]
    # What rounds to nothing has no sign.
    assert other[6:] == ["30.0 ± 1.0", "0.0", "-1.0 to +1.0", "-0.3 to +0.2", "1.25", "2.50"]
    assert alone == ["all", "1", "50.0", "", "", "", "50.0", "", "", "", "", ""]


def test_the_page_has_table_notes_figure_reading_and_runs() -> None:
    found = text(CE, LOCAL, ALONE)
    assert found.startswith("# What each variant is worth against ce\n")
    assert "data: ltcc, protocol: clothes\\_changing." in found
    assert "| local\\_2 | 2 | 45.0 ± 2.0 | +4.0 | +0.4 to +7.0 | -8.7 to +16.7 |" in found
    assert "- all has no partner\n" in found
    assert "![Differences to ce](compare.png)" in found
    assert "10,000 resamples" in found
    assert "of\n  20 variants" in found
    assert "| ce | 1 | /data/a\\|b | 41.2 | 30.0 | runs/0 |" in found
    assert found.endswith("|\n")
    assert max(map(len, found.splitlines())) < 220


def test_every_table_of_the_page_has_equal_columns() -> None:
    lines = text(CE, LOCAL, ALONE).splitlines()
    widths = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert widths == [13] * 5 + [7] * 3


def test_the_page_without_notes_has_no_empty_list() -> None:
    assert "\n\n\n" not in text(CE, LOCAL, notes=[])


def pixels(variants: list[Variant], colour: str) -> int:
    buffer = BytesIO()
    draw(variants, "ce", level=0.95, title="clothes_changing").savefig(buffer, dpi=60, format="png")
    picture = np.asarray(Image.open(buffer).convert("RGB"), int)
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(-1) < 12).sum())


def test_the_figure_has_a_row_for_each_variant_but_the_baseline() -> None:
    figure = draw([CE, LOCAL, ALONE], "ce", level=0.95, title="title")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["local_2", "all"]
    assert left.get_xlabel() == "R1: difference to ce, points"
    assert right.get_xlabel() == "mAP: difference to ce, points"
    assert "no pair" in [text.get_text() for text in left.texts]
    assert "+4.0" in [text.get_text() for text in left.texts]
    assert left.yaxis_inverted()


def test_both_intervals_are_drawn() -> None:
    bare = Variant("x", 1, {name: Score(0.5, None, (0.01,)) for name in ("R1", "mAP")})
    full = Variant(
        "x", 1, {name: Score(0.5, None, (0.01,), (-0.1, 0.1), (-0.1, 0.1)) for name in ("R1", "mAP")}
    )
    for colour in (BLUE, GREY):
        assert pixels([CE, full], colour) > pixels([CE, bare], colour) + 60


@pytest.mark.parametrize("sign", [1, -1])
def test_a_huge_interval_of_two_seeds_does_not_squeeze_the_rest(sign: int) -> None:
    score = Score(0.5, 0.1, (sign * 0.03, sign * 0.05), (0.0, sign * 0.08), (-0.9, 0.9))
    axes = draw([CE, Variant("x", 2, {"R1": score})], "ce", level=0.95, title="t").axes[0]
    low, high = axes.get_xlim()
    assert low < min(0, sign * 8)
    assert high > max(0, sign * 8)
    assert high - low < 30
    markers = [line.get_marker() for line in axes.lines]
    assert markers.count("<") == markers.count(">") == 1


def test_variants_without_any_pair_are_drawn_too() -> None:
    assert pixels([CE, ALONE], GREY) > 0


def test_names_are_no_mathematics() -> None:
    variant = Variant("$x_", 1, LOCAL.scores)
    buffer = BytesIO()
    draw([CE, variant], "ce", level=0.95, title="$y_").savefig(buffer, format="png")
    assert "\\_" in text(CE, variant)


def test_no_torch_and_no_pyplot_are_loaded() -> None:
    code = (
        "import sys; from clip3dreid.report.ablation import *; s = Score(0.5, None, (0.1,)); "
        "draw([Variant('x', 1, {'R1': s})], 'ce', level=0.9, title='t'); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
