import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from clip3dreid.inference.word_plan import word_plans
from clip3dreid.loss.transport import Sinkhorn
from clip3dreid.report.figures import cmc
from clip3dreid.review.looked import Looked
from clip3dreid.review.pictures import outfits

PROTOCOLS = ("general", "same_clothes", "clothes_changing")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_ranked_list_has_its_first_right_picture_where_the_evaluation_had_it(
    name: str, looked: Looked
) -> None:
    ranked, rows = looked.test.ranker(looked.protocol(name)), looked.rows()
    for query in looked.run.queries(name).iter_rows(named=True):
        found = ranked(rows[query["query"]])
        assert found.first_hit == query["first_hit"]
        assert found.right.sum() == query["positives"]
        assert len(found.rows) == 16 - query["junk"]
        assert (np.diff(found.distance) >= 0).all()


def test_distances_are_counted_as_a_plain_loop_counts_them(looked: Looked) -> None:
    test = looked.test
    found = test.pair_distances(seed=1)
    features = torch.nn.functional.normalize(test.seen.embedding, dim=1).double().numpy()
    query, gallery = test.found.query.to_dicts(), test.found.gallery.to_dicts()
    expected = {"same person, same clothes": 0, "same person, other clothes": 0, "other people": 0}
    sums = dict.fromkeys(expected, 0.0)
    for i, one in enumerate(query):
        for j, other in enumerate(gallery):
            if one["person"] != other["person"]:
                kind = "other people"
            elif one["camera"] == other["camera"]:
                continue
            else:
                kind = f"same person, {'same' if one['clothes'] == other['clothes'] else 'other'} clothes"
            expected[kind] += 1
            sums[kind] += 1 - features[i] @ features[len(query) + j]
    assert {kind: count.sum() for kind, count in found.counts.items()} == expected
    middles, width = (found.edges[1:] + found.edges[:-1]) / 2, found.edges[1] - found.edges[0]
    for kind, count in found.counts.items():
        assert abs(count @ middles / count.sum() - sums[kind] / expected[kind]) <= width / 2


def test_the_map_is_that_of_principal_components(looked: Looked) -> None:
    rows = list(range(4, 20))
    points, shares = looked.test.components(rows)
    reference = PCA(2).fit(looked.test.features[rows].double().numpy())
    assert np.allclose(shares, reference.explained_variance_ratio_, atol=1e-6)
    expected = reference.transform(looked.test.features[rows].double().numpy())
    assert np.allclose(np.abs(points), np.abs(expected), atol=1e-5)


def test_a_plan_has_uniform_masses_on_both_sides_and_a_word_of_every_group(looked: Looked) -> None:
    files = [looked.file("query", row) for row in range(3)]
    groups = looked.test.model.groups
    precise = Sinkhorn(eps=0.1, iterations=200, tolerance=1e-4)
    plans = word_plans(looked.test.model, files, solver=precise)
    for words, mass in plans:
        length, high, wide = mass.shape
        plan = (mass / (length * high * wide)).numpy()
        assert [word in groups[group] for group, word in words] == [True] * length
        assert np.allclose(plan.sum((1, 2)), 1 / length, atol=1e-6)
        assert np.allclose(plan.sum(0), 1 / (high * wide), atol=2e-4)
    described = looked.test.model.describe(files)[0]
    assert [words[0].word for words in described.values()] == [word for _, word in plans[0].words]


def test_an_activation_is_the_length_of_the_feature_at_its_position(looked: Looked) -> None:
    file = looked.file("gallery", 0)
    pixels = torch.from_numpy(np.asarray(looked.test.crop(file)).transpose(2, 0, 1).copy())[None] / 255
    with torch.no_grad():
        features = looked.test.model.student(pixels).map[0]
    (found,) = looked.test.activations([len(looked.test.found.query)])
    assert np.allclose(found, features.pow(2).sum(0).sqrt().numpy(), rtol=1e-4)


def test_people_with_one_outfit_are_not_shown_in_two(looked: Looked) -> None:
    table = looked.test.found.query
    first = table.filter(table["clothes"] != "23_2")
    assert sorted(outfits(table)) == ["20", "21", "22", "23"]
    assert sorted(outfits(first)) == ["20", "21", "22"]
    for rows in outfits(table).values():
        assert table["clothes"][rows].n_unique() == 2


def test_the_curve_of_the_queries_begins_at_the_recorded_score(looked: Looked) -> None:
    for name in PROTOCOLS:
        hits = looked.run.queries(name)["first_hit"].to_numpy()
        recorded = looked.run.evaluation.results[name]
        assert [cmc(hits, 10)[k - 1] for k in (1, 5, 10)] == pytest.approx(
            [recorded[key] for key in ("r1", "r5", "r10")]
        )
