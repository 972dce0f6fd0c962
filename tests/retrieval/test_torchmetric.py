import copy
import doctest
import itertools
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.retrieval import torchmetric
from clip3dreid.retrieval.protocol import Protocol, nothing
from clip3dreid.retrieval.standard import CLOTHES
from clip3dreid.retrieval.torchmetric import RetrievalMetric
from tests.processes import side_by_side
from tests.retrieval.worlds import PROTOCOLS, feed, pictures, run, score_a_share, world

NO_REMOVAL = Protocol("no_removal", nothing, "")


def brute_force(given, junk):
    """R1, R5, mAP and mINP by sorting all gallery pictures for each query, in double precision."""
    sides = [[one for one in given if one["role"] in (role, "both")] for role in ("query", "gallery")]
    scores = []
    for query in sides[0]:
        q = query["features"].double().numpy()
        ranking = []
        for place, item in enumerate(sides[1]):
            g = item["features"].double().numpy()
            same = item["person"] == query["person"]
            if not (same and (item is query or junk(query, item))):
                cosine = q @ g / np.sqrt((q @ q) * (g @ g))
                ranking.append((-round(cosine, 9), place, same))
        hits = np.flatnonzero([same for *_, same in sorted(ranking)]) + 1
        if len(hits):
            precision = np.arange(1, len(hits) + 1) / hits
            scores.append((hits[0] <= 1, hits[0] <= 5, precision.mean(), precision[-1]))
    return dict(zip(("r1", "r5", "map", "minp"), np.mean(scores, 0), strict=True)), len(scores)


def same_camera(query, item):
    return query["camera"] >= 0 and query["camera"] == item["camera"]


JUNK = {
    "general": same_camera,
    "same_clothes": lambda q, g: same_camera(q, g) or q["clothes"] != g["clothes"],
    "clothes_changing": lambda q, g: same_camera(q, g) or q["clothes"] == g["clothes"],
}


@pytest.mark.parametrize("kind", ["random", "signs"])
def test_scores_are_those_of_a_brute_force_and_ties_rank_by_index(kind):
    given = pictures(seed=3, kind=kind)
    found = feed(RetrievalMetric(CLOTHES), given).compute()
    for name, junk in JUNK.items():
        expected, valid = brute_force(given, junk)
        assert {score: found[f"{name}/{score}"] for score in expected} == pytest.approx(expected, abs=1e-12)
        assert found[f"{name}/valid_queries"] == valid


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_scores_and_intervals_are_those_of_the_evaluation_to_the_last_digit(distance):
    found = feed(RetrievalMetric(PROTOCOLS, distance=distance, intervals=True), pictures(seed=4)).compute()
    evaluated = run(*world(seed=4), metric=distance)
    assert len(found) == len(PROTOCOLS) * (10 + 6)
    for name, evaluation in evaluated.items():
        result = evaluation.result()
        for score in ("r1", "r5", "r10", "r20", "map", "minp", "chance_r1", "queries", "valid_queries"):
            assert found[f"{name}/{score}"] == result[score], (name, score)
        assert found[f"{name}/gallery"] == 90
        for score in ("r1", "map", "minp"):
            assert [found[f"{name}/{score}_{end}"] for end in ("low", "high")] == pytest.approx(
                result["interval"][score], abs=0
            )


@pytest.mark.parametrize("indexed", [True, False])
def test_the_order_in_which_pictures_come_changes_nothing(indexed):
    given = pictures(seed=5, kind="signs")
    if not indexed:
        given = [{**one, "index": -1} for one in given]
    first = feed(RetrievalMetric(PROTOCOLS), given).compute()
    for seed in range(3):
        mixed = [given[row] for row in np.random.default_rng(seed).permutation(len(given))]
        assert feed(RetrievalMetric(PROTOCOLS), mixed, batch=11).compute() == first


def test_a_picture_that_comes_twice_counts_once_by_its_index_and_twice_without():
    given = pictures(seed=6)
    once = feed(RetrievalMetric(NO_REMOVAL), given).compute()
    assert feed(RetrievalMetric(NO_REMOVAL), [*given, *given[:9], *given[50:70]]).compute() == once
    # A copy may differ in the last bit, as another device computes it: the same of the two is taken, either way.
    other = [{**one, "features": one["features"] * (1 + 1e-6)} for one in given]
    mixes = [feed(RetrievalMetric(NO_REMOVAL), mix).compute() for mix in ([*given, *other], [*other, *given])]
    assert mixes[0] == mixes[1]
    without = [{**one, "index": -1} for one in [*given, *given[:9]]]
    assert feed(RetrievalMetric(NO_REMOVAL), without).compute()["no_removal/queries"] == 49


def test_two_processes_report_what_one_does_however_pictures_are_divided(tmp_path):
    side_by_side(score_a_share, 2, 2, tmp_path)
    given = pictures(seed=12, kind="signs")
    one = feed(RetrievalMetric(PROTOCOLS), given).compute()
    for rank in (0, 1):
        said = torch.load(tmp_path / f"{rank}.pt")
        assert len(said["results"]) == 7
        for name, scores in said["results"].items():
            # Signs are the same in any precision; their cosines in double precision have other ties.
            expected = feed(RetrievalMetric(PROTOCOLS, store="float64"), given).compute()
            assert scores == (expected if name == "float64" else one), name
        assert said["errors"] == {
            "NaN": "40 of 40 query features hold NaN or infinity, first picture 0; the model or the file is broken",
            "wide": "features of some processes are wider than others'; all must come of one model",
            "nothing": "no picture was seen: call update before compute",
        }
        assert said["own"] == 66 + (rank == 0)
        assert said["without index"]["no_removal/queries"] == one["no_removal/queries"] + 3
        assert said["warnings"] == [
            "pictures came without index from several processes: those that a sampler repeats count twice"
        ]


def test_a_picture_that_is_query_and_gallery_is_not_its_own_answer():
    given = [{**one, "role": "both", "index": row} for row, one in enumerate(pictures(seed=7, queries=0))]
    found = feed(RetrievalMetric(["general", NO_REMOVAL]), given).compute()
    for name, junk in {"general": same_camera, "no_removal": lambda q, g: False}.items():
        expected, _ = brute_force(given, junk)
        assert {score: found[f"{name}/{score}"] for score in expected} == pytest.approx(expected, abs=1e-12)
    assert found["general/queries"] == found["general/gallery"] == 90


def test_labels_are_tensors_lists_arrays_or_one_number_and_roles_names_or_codes():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.1, 1.0]])
    people, roles = [7, 8, 7, 8], ["query", "query", "gallery", "gallery"]
    forms = itertools.product(
        (people, torch.tensor(people), np.array(people), torch.tensor(people, dtype=torch.uint8)),
        (roles, tuple(roles), torch.tensor([0, 0, 1, 1]), np.array([0, 0, 1, 1])),
    )
    for person, role in forms:
        metric = RetrievalMetric(NO_REMOVAL)
        metric.update(features, person, role=role)
        assert metric.compute()["no_removal/r1"] == 1
    metric = RetrievalMetric(NO_REMOVAL)
    metric.update(features[:2], people[:2], 1, role="query")
    metric.update(features[:0], [], [], role=[])
    metric.update(features[2:], people[2:], 1, role="gallery")
    assert metric.compute()["no_removal/map"] == 1


def test_junk_of_nobody_is_left_out_of_the_gallery():
    metric = RetrievalMetric(NO_REMOVAL)
    metric.update(torch.tensor([[1.0, 0.0]]), 7, role="query")
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), [-1, 7], role="gallery")
    assert metric.compute()["no_removal/r1"] == 1
    assert metric.compute()["no_removal/gallery"] == 1


def test_unknown_cameras_and_frames_are_no_labels():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    metric = RetrievalMetric("general")
    metric.update(features[:1], 7, role="query")
    metric.update(features[1:], 7, role="gallery")
    assert metric.compute()["general/r1"] == 1


@pytest.mark.parametrize(
    ("store", "size", "close"),
    [("float64", 8, 1e-15), ("float32", 4, 0), ("float16", 2, 0.02), ("bfloat16", 2, 0.05)],
)
def test_a_store_takes_what_it_says_and_gives_nearly_the_same_scores(store, size, close):
    given = pictures(seed=8)
    metric = feed(RetrievalMetric("general", store=store), given)
    held = [tensor for state in ("features", "labels") for tensor in getattr(metric, state)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == 130 * (16 * size + 56)
    plain = feed(RetrievalMetric("general"), given).compute()
    assert metric.compute() == pytest.approx(plain, abs=close)


def test_gradients_are_let_go_and_the_features_of_the_caller_stay_as_they_are():
    features = torch.rand(4, 3, requires_grad=True)
    metric = RetrievalMetric(NO_REMOVAL)
    metric.update(features, [1, 2, 1, 2], role="both")
    metric.compute()
    assert not any(tensor.requires_grad for tensor in metric.features)
    assert features.requires_grad


def test_it_is_reset_copied_collected_and_called_as_metrics_are():
    given = pictures(seed=9)
    metric = feed(RetrievalMetric("general"), given)
    expected = metric.compute()
    assert copy.deepcopy(metric).compute() == expected
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(InputError, match="no picture was seen"),
    ):
        metric.compute()
    # Whole numbers stay whole, whatever the module around it becomes.
    holder = torch.nn.ModuleDict({"metric": metric}).half()
    metric.set_dtype(torch.float16)
    assert feed(holder["metric"], given).compute() == expected
    collection = MetricCollection({"one": RetrievalMetric("general"), "two": RetrievalMetric("same_clothes")})
    for one in torch.utils.data.default_collate(given)["features"][:1]:
        assert collection["one"](one[None], 1, role="query") is None
    collection.reset()
    collection.update(**torch.utils.data.default_collate(given))
    assert collection.compute()["general/map"] == expected["general/map"]


def test_halves_of_an_epoch_merge():
    given = pictures(seed=10)
    first, second = (feed(RetrievalMetric("general"), half) for half in (given[:70], given[70:]))
    first.merge_state(second)
    assert first.compute() == feed(RetrievalMetric("general"), given).compute()


def add(metric, features=None, **labels):
    features = torch.rand(2, 3) if features is None else features
    metric.update(features, **({"person": [1, 2], "role": "both"} | labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"features": torch.rand(3)}, r"shape \(3,\); expected \(B, D\)"),
        ({"features": torch.zeros(2, 3, dtype=torch.int64)}, "features are torch.int64"),
        ({"features": torch.rand(2, 0)}, r"shape \(2, 0\)"),
        ({"features": torch.rand(2, 4)}, "4 wide, and earlier ones 3"),
        ({"person": [1]}, r"person has shape \(1,\), but there are 2 features"),
        ({"person": [1.0, 2.0]}, "person is torch.float32; labels are whole numbers"),
        ({"camera": ["a", "b"]}, "camera holds no whole numbers"),
        ({"clothes": torch.tensor([True, False])}, "clothes is torch.bool"),
        ({"role": "qery"}, "role=qery is unknown; choose query, gallery or both; did you mean query"),
        ({"role": ["query", "galery"]}, "role=galery"),
        ({"role": ["query"]}, r"role has shape \(1,\)"),
    ],
)
def test_bad_input_is_refused_in_one_line_when_it_comes(labels, message):
    metric = RetrievalMetric(NO_REMOVAL)
    add(metric)
    with pytest.raises(InputError, match=message) as caught:
        add(metric, **labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"features": torch.tensor([[1.0, torch.nan], [1, 2]])}, "1 of 2 query .* NaN .* of person 1"),
        ({"features": torch.zeros(2, 2)}, "2 of 2 query features are all zero"),
        ({}, "no query of this data has a positive"),
        ({"role": "query"}, "none of 2 pictures is gallery or both"),
        ({"role": "gallery"}, "none of 2 pictures is query or both"),
        ({"person": [-1, 1], "role": "both"}, "1 query pictures have no person label"),
        ({"person": [-2, 1]}, "person -2 is none"),
        ({"role": torch.tensor([0, 3])}, "role 3 is none; the codes are 0, 1, 2"),
        ({"index": [4, 4]}, "index 4 is that of two both pictures, with person 1 and 2"),
    ],
)
def test_what_is_wrong_with_labels_is_said_in_one_line_when_scores_are_asked_for(labels, message):
    metric = RetrievalMetric(NO_REMOVAL)
    add(metric, **labels)
    with pytest.raises(InputError, match=message) as caught:
        metric.compute()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"protocols": "generel"}, "protocols=generel is unknown; choose .*; did you mean general"),
        ({"protocols": []}, "no protocol is chosen"),
        ({"distance": "manhattan"}, "choose cosine or euclidean"),
        ({"store": "int8"}, "store=int8"),
    ],
)
def test_what_a_metric_cannot_be_made_of_is_refused_in_one_line(how, message):
    with pytest.raises(InputError, match=message):
        RetrievalMetric(**how)


def test_one_person_has_no_interval():
    metric = RetrievalMetric(NO_REMOVAL, intervals=True)
    add(metric, person=1)
    assert not [name for name in metric.compute() if name.endswith(("low", "high"))]


def test_the_example_is_true_and_the_name_is_the_librarys():
    assert clip3dreid.RetrievalMetric is RetrievalMetric
    example = doctest.DocTestFinder(recurse=False).find(RetrievalMetric, "metric", globs={})[0]
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
    assert torchmetric.ROLES == ("query", "gallery", "both")


class Nothing(torch.nn.Module):
    """A network of pictures that are features."""

    def forward(self, images):
        return images


def test_the_module_that_a_page_shows_reports_what_the_evaluation_says(tmp_path):
    page = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"^```python\n(import clip3dreid\n.*?RetrievalMetric.*?)^```$", page, flags=re.M | re.S
    )
    names = {}
    exec(code, names)
    wanted = ("image", "role", "index", "person", "camera", "clothes")
    given = [{"image": one["features"], **one} for one in pictures(seed=13)]
    loader = torch.utils.data.DataLoader(
        [{name: one[name] for name in wanted} for one in given], batch_size=9
    )
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, default_root_dir=tmp_path, num_sanity_val_steps=1,
    )  # fmt: skip
    module = names["Plain"](Nothing())
    trainer.validate(module, loader, verbose=False)
    shown = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for name, evaluation in run(*world(seed=13), CLOTHES.protocols).items():
        if name in ("general", "clothes_changing"):
            result = evaluation.result()
            for score in ("r1", "map"):
                assert shown[f"{name}/{score}"] == pytest.approx(result[score], abs=1e-6)
                assert shown[f"{name}/{score}_low"] == pytest.approx(result["interval"][score][0], abs=1e-6)
    # A first batch of queries alone ends no training before it has begun.
    trainer.fit(type("Fitted", (names["Plain"],), TRAINED)(Nothing()), loader, loader)
    assert trainer.callback_metrics["general/r1"].item() == pytest.approx(shown["general/r1"])


TRAINED = {
    "training_step": lambda self, batch, batch_idx: None,
    "configure_optimizers": lambda self: None,
}
