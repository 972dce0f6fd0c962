import logging
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from clip3dreid.data.clips import ClipSettings
from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.images import TestView
from clip3dreid.data.manifest import build
from clip3dreid.errors import InputError
from clip3dreid.inference import tracklets
from clip3dreid.inference.model import Outputs, ReidModel
from clip3dreid.inference.tracklets import ClipMeans, look_at_tracklets
from clip3dreid.io.pictures import read_rgb
from clip3dreid.model.card import ClipSize
from clip3dreid.retrieval.standard import GENERAL
from clip3dreid.training.evaluation_module import EvaluationModule
from tests.inference.walks import CLIPS, HEIGHT, WIDTH, by_hand, clip_model, picture_model, write_walk

LENGTHS = (1, 3, 4, 13, 40)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    root = tmp_path_factory.mktemp("walks")
    return [write_walk(root / str(number), length, number) for number, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def model() -> ReidModel:
    return clip_model()


def same(seen: Outputs, expected: list[Outputs]) -> None:
    for name in ("embedding", "joint", "betas"):
        rows = torch.stack([getattr(one, name) for one in expected])
        torch.testing.assert_close(getattr(seen, name), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [clip_model, picture_model])
@pytest.mark.parametrize("flip", [True, False])
def test_a_tracklet_is_the_mean_over_all_of_its_clips(make, flip: bool, walks) -> None:
    made = make(flip=flip)
    same(made.look_at_tracklets(walks), [by_hand(made, walk, flip) for walk in walks])
    same(made.look_at_tracklets(walks, batch_size=5), [by_hand(made, walk, flip) for walk in walks])


def test_a_model_of_pictures_gives_the_mean_of_its_frames(walks) -> None:
    made = picture_model()
    frames = made.embed(walks[3])
    torch.testing.assert_close(made.embed_tracklets(walks[3:4])[0], frames.mean(0), rtol=1e-5, atol=1e-5)


def test_features_are_those_that_evaluation_ranks_by(model: ReidModel, walks) -> None:
    rows = [
        {
            "path": str(path),
            "person": str(number % 2),
            "camera": str(number),
            "split": "test",
            "role": "query" if number < 2 else "gallery",
            "tracklet": str(number),
        }
        for number, walk in enumerate(walks)
        for path in walk
    ]
    manifest = build("walks", Path("/"), rows)
    data = ReidDataModule([manifest], height=HEIGHT, width=WIDTH, workers=0, clips=ClipSettings(**CLIPS))
    module = EvaluationModule(
        model.student, protocols={"test": {"walks": GENERAL.protocols}}, metric="cosine", flip=model.flip
    )
    pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).test(
        module, datamodule=data, verbose=False
    )
    tables = data.evaluations("test")[0]
    asked = [Path(path).parent for table in (tables.query, tables.gallery) for path in table["path"]]
    assert sorted(asked) == [walk[0].parent for walk in walks]
    torch.testing.assert_close(model.embed_tracklets(asked), module.features["walks"], rtol=1e-5, atol=1e-5)


def test_a_tracklet_may_be_a_folder_files_pictures_an_array_or_a_tensor(model: ReidModel, walks) -> None:
    walk = walks[3]
    array = np.stack([read_rgb(path) for path in walk])
    forms: list[Any] = [
        walk[0].parent,
        str(walk[0].parent),
        walk,
        [Image.open(path) for path in walk],
        array,
        torch.from_numpy(array).permute(0, 3, 1, 2),
        iter(walk),
    ]
    features = model.embed_tracklets(forms, normalize=True)
    torch.testing.assert_close(features, features[:1].expand_as(features))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(forms)))
    for alone in (walk[0].parent, array):
        torch.testing.assert_close(model.embed_tracklets(alone, normalize=True), features[:1])
    # Another order is another tracklet, so that the folder's was that of time and not of the alphabet.
    shuffled = sorted(walk)
    assert shuffled != walk
    assert not torch.allclose(model.embed_tracklets([shuffled], normalize=True), features[:1], atol=1e-4)


def test_workers_change_nothing(model: ReidModel, walks) -> None:
    alone, several = (model.embed_tracklets(walks[2:], workers=n, batch_size=8) for n in (0, 2))
    assert torch.equal(alone, several)


def test_another_feature_is_averaged_as_evaluation_averages_it(model: ReidModel, walks) -> None:
    feature = {"embedding": 1, "betas": 0.5}
    other = model.with_feature(feature)
    expected = torch.stack([by_hand(other, walk).embedding for walk in walks])
    made = model.embed_tracklets(walks, feature=feature)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


class Counting:
    """A model that says how many frames it was given, and how many were held beside."""

    def __init__(self) -> None:
        self.view, self.clips, self.widths = TestView(4, 2), ClipSize(8, 4), {"embedding": 1}
        self.device = torch.device("cpu")
        self.given = self.held = self.most_held = self.read = 0

    def eval(self) -> None:
        pass

    def __call__(self, images: torch.Tensor, flip: bool | None) -> Outputs:
        self.given = max(self.given, images.shape[0] * images.shape[1])
        return Outputs(images.mean((1, 2, 3, 4))[:, None], None, None)

    def planes_of(self, picture: Any, name: str, view: TestView) -> torch.Tensor:
        planes = torch.from_numpy(view(picture))
        self.read += 1
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        weakref.finalize(planes, self._drop)
        return planes

    def _drop(self) -> None:
        self.held -= 1


@pytest.mark.parametrize("length", [32, 3000])
def test_a_long_tracklet_is_read_bit_by_bit(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is 32 frames, of which one may still be held while the next are read, however long the walk is."""
    counting: Any = Counting()
    monkeypatch.setattr(tracklets, "planes_of", counting.planes_of)
    walk = np.broadcast_to(np.arange(48, dtype=np.uint8).reshape(8, 2, 3), (length, 8, 2, 3))
    seen = look_at_tracklets(counting, [walk], batch_size=32)
    assert counting.read == length
    assert counting.given == 32
    assert counting.most_held <= 2 * 32
    assert torch.isfinite(seen.vectors["embedding"]).all()


def test_frames_that_cannot_be_read_are_left_out_and_told(model, walks, tmp_path, caplog) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("nothing")
    short = walks[1]
    with caplog.at_level(logging.WARNING):
        made = model.embed_tracklets([[short[0], broken, short[2]], [broken], walks[2]], on_error="skip")
    assert "2 of 8 frames could not be read, first frame 1 of tracklet 0: not a picture" in caplog.text
    torch.testing.assert_close(made[0], model.embed_tracklets([[short[0], short[2]]])[0])
    assert made[1].isnan().all()
    torch.testing.assert_close(made[2], model.embed_tracklets(walks[2:3])[0])
    with pytest.raises(InputError, match=r"cannot read the picture .*broken.png"):
        model.embed_tracklets([[broken]])
    with pytest.raises(InputError, match="no frame could be read, first frame 0 of tracklet 0: "):
        model.embed_tracklets([[broken], [broken]], on_error="skip")


def test_what_is_no_tracklet_is_refused(model: ReidModel, walks) -> None:
    walk = walks[1]
    wrong: Any
    for wrong, reason in (
        ([walk[0]], "is no folder; a tracklet is a folder of frames"),
        ([walk[0].parents[1]], "has frames in 5 folders, first 0 and 1"),
        ([[]], "tracklet 0 has no frames"),
        ([walk, 7], "tracklet 1 is a int; a tracklet is"),
        ([Image.open(walk[0])], "tracklet 0 is a PngImageFile"),
        (torch.zeros(3, 32, 16), "tracklet 0 has shape"),
        ([[walk[0], 7]], "frame 1 of tracklet 0 is a int"),
    ):
        with pytest.raises(InputError, match=reason):
            model.embed_tracklets(wrong)
    with pytest.raises(InputError, match="tracklets have no maps"):
        model.look_at_tracklets([walk], maps=True)
    assert model.embed_tracklets([]).shape == (0, 128)


def test_a_card_of_clips_needs_a_student_of_them() -> None:
    with pytest.raises(InputError, match="trained on clips of 4 frames, and its student looks at pictures"):
        picture_model(clips=CLIPS)
    assert picture_model(clips={"frames": 1, "stride": 3}).trained_on_clips


def test_features_of_clips_are_averaged_as_they_are_and_a_tracklet_without_a_clip_has_none() -> None:
    means = ClipMeans({"embedding": 2}, 3)
    features = torch.tensor([[1.0, 0], [3, 0], [0, 8], [2, 3]], dtype=torch.float16)
    means.add(torch.tensor([1, 1, 0]), {"embedding": features[:3]})
    means.add(torch.tensor([1]), {"embedding": features[3:]})
    found = means.means()["embedding"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:2], torch.tensor([[0.0, 8], [2, 1]]))
    assert found[2].isnan().all()
    assert means.clips.tolist() == [1, 3, 0]
