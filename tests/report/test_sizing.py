"""Estimates are proportions of figures, checked by hand; what breaks is said from a size on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.report.sizing import AT_MOST, SizeSettings, figures_of, size

MEASURED = OmegaConf.to_container(OmegaConf.load(conf_dir() / "measured" / "two_cores.yaml"))
ROUND = {"train": 100, "extract": 1000, "decode": 500, "list_seconds": 6, "list_mib": 1024, "exact_ms": 8}
ROUND |= {"exact_one_ms": 200, "lance_one_ms": 20, "lance_mib": 512, "lance_build_s": 3600}


def estimates(own=ROUND, **asked):
    found = size(SizeSettings(**asked), figures_of(MEASURED, own))
    return {(line.what, line.unit.partition(",")[0]): line.value for line in found.lines}, found


def test_each_estimate_by_hand():
    lines, _ = estimates(
        pictures=36_000, people=1024, epochs=100, gpus=2, gallery=4_000_000, columns=1024, kilobytes=10.0
    )
    by_hand = {
        "training": 5.0,
        "identity head with its optimizer": 1 / 64,
        "listing before the first crop": 24,
        "memory of the list": 4,
        "extraction": 4e6 / 2000 / 3600,
        "files of crops": 4e10 / 2**30,
        "exact search, memory": 4e6 * 4096 / 2**30,
        "exact search, one query": 4 * 2 * 200,
        "exact search, each of many": 4 * 2 * 8,
        "index beside the shards": 4e6 * 1024 * 4.125 / 2**30,
        "index, building": 8,
        "index, one query": 2 * 2 * 20,
        "index, memory": 4,
    }
    found = {what: value for (what, _), value in lines.items()}
    assert {what: found[what] for what in by_hand} == pytest.approx(by_hand)
    assert lines["shards", "files"] == 977
    assert lines["shards", "GiB"] == pytest.approx(4e6 * 4096 / 2**30)


def test_half_precision_halves_shards_and_exact_search_and_not_the_index():
    whole, half = (estimates(dtype=dtype)[0] for dtype in ("float32", "float16"))
    for what in (("shards", "GiB"), ("exact search, memory", "GiB")):
        assert half[what] == whole[what] / 2
    assert half["index beside the shards", "GiB"] == whole["index beside the shards", "GiB"]


def test_every_figure_says_where_it_is_from():
    figures = figures_of(MEASURED, {"train": 900, "extract": None})
    assert figures["train"] == (900, "yours: own.train")
    assert "RESULTS" in figures["decode"].source
    assert "two cores" in figures["extract"].source
    _, found = estimates({}, pictures=10)
    header, rows = found.sources()
    assert header == ["figure", "value", "source"]
    used = {name for line in found.lines for name in line.basis.split(", ")} - {"arithmetic"}
    assert {row[0] for row in rows} == used
    said = found.to_dict()
    assert {line["basis"] for line in said["estimates"]} <= {*said["figures"], "arithmetic"} | {
        "train, decode",
        "extract, decode",
    }


@pytest.mark.parametrize(
    ("asked", "breaks"),
    [
        ({"gallery": 500_000, "columns": 512}, []),
        ({"gallery": 2_000_000, "columns": 512}, ["an exact query"]),
        ({"gallery": 2_000_000}, ["4,096 columns", "an exact query"]),
        ({"gallery": 6_000_000, "columns": 512}, ["a list of crops", "an exact query", "shards opened"]),
        (
            {"gallery": AT_MOST, "people": 1_000_000},
            [
                "a list of",
                "a file a",
                "4,096",
                "exact search in memory",
                "an exact query",
                "shards",
                "one identity",
            ],
        ),
        ({"gallery": 500_000, "memory": 1.0}, ["exact search in memory"]),
    ],
)
def test_what_breaks_is_said_from_its_size_on(asked, breaks):
    found = estimates(**asked)[1].limits
    assert len(found) == len(breaks)
    assert all(limit.what.startswith(start) for limit, start in zip(found, breaks, strict=True))
    assert all(limit.remedy for limit in found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gallery": AT_MOST + 1}, "gallery="),
        ({"gpus": 65}, "gpus=65"),
        ({"gallery": 0}, "gallery=0"),
        ({"kilobytes": 0.0}, "kilobytes"),
        ({"dtype": "int8"}, "dtype=int8"),
    ],
)
def test_sizes_that_nobody_has_thought_through_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        SizeSettings(**asked)


@pytest.mark.parametrize(
    ("own", "message"), [({"train": 0}, r"own\.train=0"), ({"speed": 3}, r"own\.speed is no figure")]
)
def test_figures_that_are_none_are_refused(own, message):
    with pytest.raises(InputError, match=message):
        figures_of(MEASURED, own)


@given(st.integers(1, AT_MOST), st.integers(1, 64))
def test_more_devices_take_no_longer_and_more_crops_no_less(gallery, gpus):
    less, more = (estimates(gallery=gallery, gpus=count)[0] for count in (1, gpus))
    assert more["extraction", "hours"] <= less["extraction", "hours"]
    assert min(more.values()) >= 0
