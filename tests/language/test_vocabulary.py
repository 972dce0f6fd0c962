import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import percentileofscore

from clip3dreid.body import measure
from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.language.vocabulary import Vocabulary

GIVEN = {*measure.MEASURES, "gender", "muscularity"}
Groups = dict[str, Any]


@pytest.fixture
def shipped() -> Groups:
    content = OmegaConf.to_container(OmegaConf.load(conf_dir() / "language" / "body_words.yaml"))
    assert isinstance(content, dict)
    return {key: content[key] for key in ("groups", "prompts")}


@pytest.fixture
def groups(shipped: Groups) -> Groups:
    return dict(shipped["groups"])


@pytest.fixture
def vocabulary(shipped: Groups) -> Vocabulary:
    return Vocabulary(**shipped)


def people(count: int = 100, **given: Any) -> dict[str, Any]:
    """Everybody is 1 m tall; every other measure runs through 1, 2, 3 ..., unless given."""
    measures = {name: 1 + np.arange(float(count)) for name in GIVEN} | {"stature": np.ones(count)}
    return measures | {name: np.asarray(values, float) for name, values in given.items()}


def test_the_shipped_vocabulary_has_the_sixteen_groups(vocabulary: Vocabulary) -> None:
    parts = (
        "shoulders chest waist hips belly torso_length leg_length leg_girth arm_length arm_girth neck_length"
    )
    assert set(vocabulary.groups) == {"stature", "weight", "muscularity", "figure", "gender", *parts.split()}
    assert set(vocabulary.groups) - set(vocabulary.ordered) == {"figure"}


def test_every_measure_that_the_shipped_vocabulary_asks_for_is_one_that_bodies_give(
    vocabulary: Vocabulary,
) -> None:
    # A mistyped measure would leave its group out without a word.
    words, _ = vocabulary.words(people(), people())
    assert set(words) == set(vocabulary.groups)


def test_parts_are_judged_relative_to_stature(vocabulary: Vocabulary) -> None:
    population = people()
    twice = {name: 2 * values for name, values in population.items()}
    alike, _ = vocabulary.words(population, population)
    scaled, _ = vocabulary.words(twice, population)
    for group in set(vocabulary.groups) - {"stature", "weight", "muscularity", "gender"}:
        assert scaled[group] == alike[group], group
    assert scaled["stature"] == ["tall"] * 100


def test_words_ascend_with_the_measure_and_change_at_the_cuts(groups: Groups) -> None:
    groups["hips"] = {"measure": "hip_girth", "words": ["low", "middle", "high"], "cuts": [30, 70]}
    asked = people(4, hip_girth=[30.4, 30.5, 70.4, 70.5])
    # 30 and 70 of 100 people lie below 30.5 and 70.5: exactly on the cuts, where the higher word holds.
    words, percentiles = Vocabulary(groups).words(asked, people())
    assert percentiles["hip_girth"].tolist() == [30, 30, 70, 70]
    assert words["hips"] == ["middle", "middle", "high", "high"]
    words, _ = Vocabulary(groups).words(people(4, hip_girth=[1, 30, 31, 100]), people())
    assert words["hips"] == ["low", "low", "middle", "high"]


def test_the_words_of_an_ordered_group_are_in_ascending_order_of_its_measure(vocabulary: Vocabulary) -> None:
    words, _ = vocabulary.words(people(stature=np.ones(100)), people())
    for group in set(vocabulary.ordered) - {"stature"}:
        index = [vocabulary.groups[group].index(word) for word in words[group]]
        assert index == sorted(index), group
        assert set(words[group]) == set(vocabulary.groups[group]), group


def test_percentiles_are_mid_ranks_also_among_ties(vocabulary: Vocabulary) -> None:
    known, asked = [3.0, 1.0, 2.0, 2.0, 5.0], [0.0, 1.0, 2.0, 2.5, 9.0]
    _, found = vocabulary.words(people(5, weight_index=asked), people(5, weight_index=known))
    expected = [percentileofscore(known, value, kind="mean") for value in asked]
    assert found["weight_index"].tolist() == pytest.approx(expected)


def test_the_nearest_prototype_names_the_figure() -> None:
    small = {"figure": {"prototypes": {"pear": {"chest": 20, "hip": 80}, "apple": {"chest": 80, "hip": 40}}}}
    everybody = {name: np.arange(100.0) for name in ("chest", "hip")}
    asked = {"chest": np.array([20.0, 80.0, 40.0, 60.0]), "hip": np.array([80.0, 40.0, 70.0, 30.0])}
    assert Vocabulary(small).words(asked, everybody)[0]["figure"] == ["pear", "apple", "pear", "apple"]


def test_values_that_are_no_numbers_and_an_empty_population_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="measure stature of person 1 is not finite"):
        vocabulary.words(people(2, stature=[1.7, float("nan")]), people())
    with pytest.raises(InputError, match="population is empty"):
        vocabulary.words(people(1), people(0))


def test_an_unknown_measure_is_refused_by_name(groups: Groups) -> None:
    groups["hips"]["measure"] = "hip_grith / stature"
    with pytest.raises(InputError, match="hips: measure=hip_grith is unknown"):
        Vocabulary(groups).check(GIVEN)
    groups["hips"]["measure"] = "a / b / c"
    with pytest.raises(InputError, match="ratio of two"):
        Vocabulary(groups)


def test_groups_whose_measure_is_missing_are_left_out_with_a_note(
    vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {name: values for name, values in people().items() if name not in ("gender", "muscularity")}
    with caplog.at_level(logging.INFO):
        words, _ = vocabulary.words(plain, plain)
    assert set(vocabulary.groups) - set(words) == {"gender", "muscularity"}
    assert "gender" in caplog.text
    assert "muscularity" in caplog.text


def test_columns_are_ratios_by_the_name_of_their_expression(vocabulary: Vocabulary) -> None:
    columns = vocabulary.columns(people(2, stature=[1.6, 2.0], leg_length=[0.8, 0.9]))
    assert columns["leg_length / stature"].tolist() == pytest.approx([0.5, 0.45])
    assert columns["stature"].tolist() == [1.6, 2.0]


BAD: dict[str, Callable[[Groups], Any]] = {
    "cuts that do not ascend": lambda g: g["hips"].update(cuts=[67, 33]),
    "a cut too few": lambda g: g["hips"].update(cuts=[50]),
    "a cut beyond 100": lambda g: g["hips"].update(cuts=[33, 101]),
    "a word twice": lambda g: g["hips"].update(words=["wide hips", "wide hips", "hips"]),
    "a word of another group": lambda g: g["hips"].update(words=["tall", "average hips", "wide hips"]),
    "one word": lambda g: g["hips"].update(words=["hips"], cuts=[]),
    "no cuts": lambda g: g["hips"].pop("cuts"),
    "an unknown key": lambda g: g["hips"].update(cut=[50]),
    "a phrase without the word": lambda g: g["hips"].update(phrase="a {person} with hips"),
    "a phrase without the person": lambda g: g["hips"].update(phrase="a person with {word}"),
    "a phrase with an unknown place": lambda g: g["hips"].update(phrase="a {persn} with {word}"),
    "a phrase without article": lambda g: g["hips"].update(phrase="{word} of a {person}"),
    "a phrase for an unknown word": lambda g: g["hips"].update(
        phrase={"default": "a {person} with {word}", "wide hip": "a {word} {person}"}
    ),
    "a word without phrase": lambda g: g["hips"].update(phrase={"wide hips": "a {person} with {word}"}),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_faulty_group_is_refused_by_name(groups: Groups, fault: str) -> None:
    faulty = copy.deepcopy(groups)
    BAD[fault](faulty)
    with pytest.raises(InputError, match="hips"):
        Vocabulary(faulty)


def test_prototypes_on_different_axes_are_refused(groups: Groups) -> None:
    groups["figure"]["prototypes"]["hourglass"].popitem()
    with pytest.raises(InputError, match="figure"):
        Vocabulary(groups)


def test_a_phrase_of_a_mistyped_word_is_refused_with_the_word_that_was_meant(groups: Groups) -> None:
    groups["hips"]["phrase"] = {"default": "a {person} with {word}", "wide hip": "a {person} with {word}"}
    with pytest.raises(InputError, match=r"hips\.phrase\.wide hip is not a word .* did you mean wide hips"):
        Vocabulary(groups)


def test_a_group_without_phrase_has_its_words_said_with_a_with(groups: Groups) -> None:
    del groups["hips"]["phrase"]
    assert Vocabulary(groups).prompts.sentence(["wide hips"]) == "a person with wide hips"


def test_the_flat_list_has_all_words_in_the_order_of_groups_and_prompts(vocabulary: Vocabulary) -> None:
    flat = vocabulary.flat
    assert flat[:4] == [
        ("stature", "short"),
        ("stature", "medium height"),
        ("stature", "tall"),
        ("weight", "skinny"),
    ]
    assert len(flat) == sum(map(len, vocabulary.groups.values()))
    assert [word for _, word in flat] == vocabulary.prompts.words


CHANGES: dict[str, Callable[[Groups], Any]] = {
    "a word": lambda c: c["groups"]["hips"].update(words=["narrow hips", "average hips", "broad hips"]),
    "the order of words": lambda c: c["groups"]["hips"]["words"].reverse(),
    "the order of groups": lambda c: c["groups"].update(stature=c["groups"].pop("stature")),
    "a phrase": lambda c: c["groups"]["hips"].update(phrase="a {person} who has {word}"),
    "a template": lambda c: c["prompts"]["templates"].append("a drawing of {phrase}"),
    "a noun": lambda c: c["prompts"]["people"].update(neutral="pedestrian"),
    "a wording": lambda c: c["prompts"]["wordings"].pop("large chest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_changes_with_everything_that_labels_depend_on(shipped: Groups, change: str) -> None:
    before = Vocabulary(**copy.deepcopy(shipped)).digest
    CHANGES[change](shipped)
    assert Vocabulary(**shipped).digest != before


def test_the_digest_is_the_same_for_plain_values_and_for_a_config(shipped: Groups) -> None:
    # Cuts decide which words are true of a measured body, not what a teacher sees.
    config = OmegaConf.create(copy.deepcopy(shipped))
    shipped["groups"]["hips"]["cuts"] = [20, 80]
    assert Vocabulary(config.groups, config.prompts).digest == Vocabulary(**shipped).digest
