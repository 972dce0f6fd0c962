from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from clip3dreid.errors import InputError
from clip3dreid.retrieval.evaluation import evaluate
from clip3dreid.retrieval.protocol import (
    PictureLabels,
    Protocol,
    encode,
    nothing,
    same_camera,
    same_camera_or_clothes,
    same_first_digit,
    same_picture,
    select,
)
from tests.retrieval.drawn import EXAMPLES, GALLERY, QUERIES

CONFIGS = Path(__file__).parents[2] / "conf" / "protocol"


def load(name):
    node = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert list(node) == [name]
    return instantiate(node[name])


def test_every_protocol_config_has_a_drawn_example_and_carries_its_file_name():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == set(EXAMPLES)
    assert all(load(name).name == name for name in names)


@pytest.mark.parametrize("name", EXAMPLES)
def test_junk_positives_and_filters_are_as_drawn(name):
    protocol, drawn = load(name), EXAMPLES[name]
    tables = pl.DataFrame(drawn.query), pl.DataFrame(drawn.gallery)
    query, gallery = encode(*tables)
    chosen = select(protocol, *tables)
    columns = PictureLabels(*(label[:, None] for label in query))
    junk = protocol.drop(columns, gallery).expand(4, 5)
    asked = chosen.queries[:, None] & chosen.gallery
    same = columns.person == gallery.person
    found = [
        "".join(
            " " if not asked[q, g] else "." if not same[q, g] else "j" if junk[q, g] else "+"
            for g in range(5)
        )
        for q in range(4)
    ]
    assert found == drawn.marks


@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers_are_as_worked_by_hand(name):
    protocol, drawn = load(name), EXAMPLES[name]
    found = evaluate(
        torch.tensor(QUERIES),
        pl.DataFrame(drawn.query),
        torch.tensor(GALLERY),
        pl.DataFrame(drawn.gallery),
        {name: protocol},
        metric="euclidean",
    )[name]
    asked = [q for q in range(4) if drawn.marks[q].strip()]
    numbers = [drawn.numbers[q] for q in asked]
    assert found.rows.tolist() == asked
    assert found.per_query.valid.tolist() == [number is not None for number in numbers]
    expected = np.array([number or (0, 0, 0) for number in numbers])
    for column, value in enumerate((found.per_query.first_hit, found.per_query.ap, found.per_query.inp)):
        np.testing.assert_allclose(value.numpy(), expected[:, column], atol=1e-12)
    marks = [drawn.marks[q] for q in asked]
    assert found.per_query.positives.tolist() == [row.count("+") for row in marks]
    assert found.per_query.junk.tolist() == [row.count("j") for row in marks]
    valid = expected[[number is not None for number in numbers]]
    result = found.result()
    assert result["r1"] == pytest.approx((valid[:, 0] == 1).mean())
    assert result["r5"] == 1
    assert result["map"] == pytest.approx(valid[:, 1].mean())
    assert result["minp"] == pytest.approx(valid[:, 2].mean())


def test_an_unknown_camera_is_never_the_same_camera():
    query, gallery = encode(
        pl.DataFrame({"person": ["a", "a"], "camera": [None, "1"]}),
        pl.DataFrame({"person": ["a", "a"], "camera": [None, "1"]}),
    )
    junk = same_camera(PictureLabels(*(label[:, None] for label in query)), gallery)
    assert junk.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("one", "other", "same"), [(1, 19, True), (7, 7, True), (100, 1, True), (2, 12, False)]
)
def test_the_first_digit_is_the_decimal_one(one, other, same):
    query, gallery = encode(
        pl.DataFrame({"person": ["a"], "frame": [one]}), pl.DataFrame({"person": ["a"], "frame": [other]})
    )
    assert same_first_digit(query, gallery).tolist() == [same]


def test_codes_are_equal_exactly_where_labels_are_across_both_tables():
    query, gallery = encode(
        pl.DataFrame({"person": ["10", "9"], "clothes": ["10_1", None]}),
        pl.DataFrame({"person": ["9", "010", "10"], "clothes": ["9_1", "10_1", "10_1"]}),
    )
    assert (query.person[:, None] == gallery.person).tolist() == [[False, False, True], [True, False, False]]
    assert query.clothes[0] == gallery.clothes[1] == gallery.clothes[2] != gallery.clothes[0]
    assert query.clothes[1] == -1
    assert gallery.camera.tolist() == [-1, -1, -1]


def test_people_of_the_same_number_in_two_data_sets_are_two_people():
    table = pl.DataFrame({"person": ["1", "1"], "camera": ["1", "1"], "data_set": ["ltcc", "prcc"]})
    query, gallery = encode(table, table)
    assert (query.person[:, None] == gallery.person).tolist() == [[True, False], [False, True]]
    assert (query.camera[:, None] == gallery.camera).tolist() == [[True, False], [False, True]]


def test_a_picture_without_a_person_is_refused():
    with pytest.raises(InputError, match="1 gallery pictures have no person"):
        encode(pl.DataFrame({"person": ["a"]}), pl.DataFrame({"person": ["a", None]}))


def clothes_tables(query_clothes, gallery_clothes):
    return (
        pl.DataFrame({"person": ["a", "a"], "clothes": query_clothes, "data_set": ["celeb", "celeb"]}),
        pl.DataFrame({"person": ["a", "b"], "clothes": gallery_clothes, "data_set": ["celeb", "celeb"]}),
    )


def test_missing_clothes_are_an_error_naming_protocol_and_data():
    protocol = Protocol("clothes_changing", same_camera_or_clothes, "", needs=["clothes"])
    with pytest.raises(InputError, match=r"clothes_changing needs clothes .* celeb has none on 1 of 2 query"):
        select(protocol, *clothes_tables(["a1", None], ["a1", "b1"]))
    with pytest.raises(InputError, match="celeb has none on 1 of 1 gallery"):
        select(protocol, *clothes_tables(["a1", "a1"], [None, "b1"]))


def test_people_without_queries_need_no_clothes():
    protocol = Protocol("clothes_changing", same_camera_or_clothes, "", needs=["clothes"])
    assert select(protocol, *clothes_tables(["a1", "a1"], ["a1", None])).gallery.all()


def test_a_filter_that_finds_nothing_says_what_there_is():
    protocol = Protocol("prcc_clothes_changing", same_camera, "", queries={"query_set": ["C"]})
    table = pl.DataFrame({"person": ["a"], "query_set": ["B"]})
    with pytest.raises(InputError, match=r"query_set among \['C'\], and this data has none \(found: B\)"):
        select(protocol, table, table)
    with pytest.raises(InputError, match="found: no labels"):
        select(protocol, table.drop("query_set"), table)


@pytest.mark.parametrize(
    "mistake", [{"needs": ["cloth"]}, {"average_precision": "voc"}, {"draws": -1}, {"per_person": 0}]
)
def test_a_protocol_with_a_wrong_value_is_refused_by_name(mistake):
    with pytest.raises(InputError, match="protocol mine: "):
        Protocol("mine", nothing, "", **mistake)


def test_facts_tell_protocols_apart_that_differ_in_shots_or_filters():
    facts = {str(load(name).facts()) for name in EXAMPLES}
    assert len(facts) == len(EXAMPLES)
    assert load("prcc_clothes_changing_single_shot").facts()["shots"] == (
        "1 picture(s) a person, mean of 10 draw(s), seed 0"
    )
    assert load("prcc_clothes_changing").facts()["shots"] == "multi-shot"


SAME = {"person": ["1", "1"], "camera": ["a", "b"]}


@pytest.mark.parametrize(
    ("query", "gallery"),
    [
        ({"path": ["x", "y"]}, {"path": ["y", "z"]}),
        ({"path": ["x", "y"], "picture": ["p", "q"]}, {"path": ["v", "w"], "picture": ["q", "r"]}),
    ],
)
def test_the_querys_own_picture_is_junk_by_default_and_kept_on_request(query, gallery):
    asked, items = encode(pl.DataFrame(SAME | query), pl.DataFrame(SAME | gallery))
    asked = asked.at(torch.arange(2)[:, None])
    dropped = Protocol("x", nothing, "").junk(asked, items)
    assert dropped.tolist() == [[False, False], [True, False]]
    assert not Protocol("x", nothing, "", same_picture="keep").junk(asked, items).any()


def test_pictures_without_a_path_are_never_the_same():
    query, gallery = encode(pl.DataFrame(SAME), pl.DataFrame(SAME))
    assert not same_picture(query.at(torch.arange(2)[:, None]), gallery).any()


def test_what_becomes_of_the_same_picture_stands_with_the_protocol():
    assert all(load(name).facts()["same_picture"] == "drop" for name in EXAMPLES)
    with pytest.raises(InputError, match="same_picture=maybe is unknown; choose drop or keep"):
        Protocol("x", nothing, "", same_picture="maybe")
    with pytest.raises(InputError, match="needs"):
        Protocol("x", nothing, "", needs=["picture"])
