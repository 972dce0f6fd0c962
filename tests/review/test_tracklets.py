"""Tracklets of a run, looked at as its evaluation looks at them."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip3dreid.data.clips import ClipSettings, all_clips
from clip3dreid.data.evaluation_sets import evaluation_sets
from clip3dreid.data.manifest import Manifest, build
from clip3dreid.retrieval.standard import GENERAL
from clip3dreid.review.looked import Looked
from clip3dreid.review.pictures import TestPictures
from clip3dreid.review.settings import ReportSettings
from clip3dreid.review.tracklets import middle_clip, tracklets_of
from clip3dreid.training.data import RunData
from clip3dreid.training.evaluation import evaluate_model
from tests.export.models import FRAMES, HEIGHT, OF_CLIPS, WIDTH, made

SIZE = ClipSettings(FRAMES, 2)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Four people, each a query and two walks of the gallery, of 2 to 9 frames of noise."""
    root, rng, rows = tmp_path_factory.mktemp("walks"), np.random.default_rng(0), []
    lengths = iter((2, 9, 3, 7, 4, 5, 8, 2, 6, 9, 1, 7))
    for person in "1234":
        for role, camera in (("query", "1"), ("gallery", "2"), ("gallery", "3")):
            for frame in range(next(lengths)):
                path = f"{person}_{camera}_{frame}.png"
                noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / path)
                facts = {"split": "test", "role": role, "person": person, "camera": camera, "tracklet": "a"}
                rows.append({"path": path, "frame": frame, **facts})
    return build("walks", root, rows)


def looked_at(walks: Manifest, **student: Any) -> TestPictures:
    model = made(OF_CLIPS | student)
    (found,) = evaluation_sets([walks], "test", clips=True)
    tracklets = tracklets_of(walks.root, found, SIZE)
    assert tracklets is not None
    # Batches of two clips, so that tracklets are cut apart by them.
    seen = tracklets.look(model, flip=True, batch=2 * FRAMES)
    return TestPictures(model, found, GENERAL, "cosine", seen, tracklets)


@pytest.fixture(scope="module")
def test(walks: Manifest) -> TestPictures:
    return looked_at(walks)


def frames_of(walks: Manifest, row: int, test: TestPictures) -> torch.Tensor:
    """All frames of a tracklet, (F, 3, H, W) in 0..1, read by Pillow."""
    table = test.found.query if row < 4 else test.found.gallery
    facts = table.row(row if row < 4 else row - 4, named=True)
    names = [f"{facts['person']}_{facts['camera']}_{number}.png" for number in range(facts["frames"])]
    arrays = [np.asarray(Image.open(walks.root / name)).transpose(2, 0, 1) for name in names]
    return torch.from_numpy(np.stack(arrays)) / 255


@pytest.mark.parametrize(
    ("length", "frames", "stride", "clip"),
    [
        (100, 4, 4, [42, 46, 50, 54]),
        (100, 3, 4, [46, 50, 54]),
        # Too short for the stride: 12 // 8 = 1.
        (12, 8, 4, [2, 3, 4, 5, 6, 7, 8, 9]),
        (11, 4, 4, [1, 3, 5, 7]),
        # Looped, with the middle in its place.
        (2, 4, 4, [1, 0, 1, 0]),
        (5, 1, 4, [2]),
    ],
)
def test_a_clip_around_the_middle_has_the_middle_frame_in_its_middle(
    length: int, frames: int, stride: int, clip: list[int]
) -> None:
    found = middle_clip(length, frames, stride)
    assert found.tolist() == clip
    assert found[frames // 2] == length // 2


def test_a_tracklet_is_the_mean_over_all_its_clips(walks: Manifest, test: TestPictures) -> None:
    for row in range(12):
        frames = frames_of(walks, row, test)
        clips = torch.stack([frames[one] for one in all_clips(len(frames), *SIZE.size.values())])
        with torch.no_grad():
            both = test.model.student(clips).embedding + test.model.student(clips.flip(-1)).embedding
        torch.testing.assert_close(test.seen.embedding[row], both.mean(0), rtol=1e-4, atol=1e-5)
    assert test.seen.joint is not None
    torch.testing.assert_close(test.seen.joint.norm(dim=1), torch.ones(12))


def test_some_tracklets_are_looked_at_by_themselves(test: TestPictures) -> None:
    assert test.tracklets is not None
    some = test.tracklets.look(test.model, [5, 0, 5], flip=True)
    torch.testing.assert_close(some.embedding, test.seen.embedding[[5, 0, 5]])


def test_lists_of_tracklets_agree_with_the_evaluation(walks: Manifest, test: TestPictures) -> None:
    result = evaluate_model(test.model, RunData(walks, GENERAL), progress=False)
    name = GENERAL.headline
    ranked = test.ranker(GENERAL.protocols[name])
    rows = {path: row for row, path in enumerate(test.found.query["path"])}
    queries = result.queries["walks"][name]
    assert len(queries) == 4
    for query in queries.iter_rows(named=True):
        assert ranked(rows[query["query"]]).first_hit == query["first_hit"]


@pytest.mark.parametrize("guided", ["middle", "all"])
def test_a_map_is_of_the_middle_frame_in_a_clip_around_it(walks: Manifest, guided: str) -> None:
    test = looked_at(walks, guided=guided)
    rows = [1, 4, 10]
    found = test.activations(rows)
    assert test.feature_maps(rows).shape[2] == (4 if guided == "middle" else 4 * FRAMES)
    for place, row in enumerate(rows):
        frames = frames_of(walks, row, test)
        with torch.no_grad():
            # No layer looks across frames: the frame alone gives the same.
            alone = test.model.student(frames[len(frames) // 2][None]).map[0]
        np.testing.assert_allclose(found[place], alone.norm(dim=0).numpy(), rtol=1e-4, atol=1e-5)
        shown = np.asarray(test.crop(test.found.files[row])).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(shown, frames[len(frames) // 2].numpy(), atol=1e-6)


def test_a_query_is_shown_with_its_ends(walks: Manifest, test: TestPictures) -> None:
    assert test.tracklets is not None
    # The queries have 2, 7, 8 and 9 frames; of two frames the second is the middle one.
    assert test.found.query["frames"].to_list() == [2, 7, 8, 9]
    assert [(path.name, number) for path, number in test.tracklets.ends(0)] == [("1_1_0.png", 1)]
    assert [(path.name, number) for path, number in test.tracklets.ends(1)] == [
        *(("2_1_0.png", 1), ("2_1_6.png", 7)),
    ]
    run: Any = None  # nothing of it is asked for
    shown = Looked(run, test, ReportSettings()).strip(1, "AP 50.0 %")
    assert [picture.path.name for picture in shown] == ["2_1_3.png", "2_1_0.png", "2_1_6.png"]
    assert shown[0].caption == ("AP 50.0 %", "frame 4 of 7", "person 2", "camera 1")
