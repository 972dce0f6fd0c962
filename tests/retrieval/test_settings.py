import subprocess
import sys

import pytest

from clip3dreid.errors import InputError
from clip3dreid.retrieval.settings import check_rates, open_set_rates


@pytest.mark.parametrize("rates", [[], [0], [1], [0.1, 0.1], [float("nan")], ["much"], 0.1, [[0.1]]])
def test_what_are_no_rates_is_refused_in_one_line(rates):
    with pytest.raises(InputError, match=r"open_set=.* between 0 and 1") as caught:
        check_rates(rates)
    assert "\n" not in str(caught.value)


def test_rates_are_asked_for_only_of_scores_that_compare():
    assert open_set_rates(None, reranked=True) is None
    assert open_set_rates([1e-3, 0.01], reranked=False) == (0.001, 0.01)
    with pytest.raises(InputError, match="leave open_set or the re-ranking out"):
        open_set_rates([0.1], reranked=True)


def test_a_door_can_check_them_without_loading_torch():
    heavy = (
        "import sys, clip3dreid.retrieval.settings; print({'torch', 'polars', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
