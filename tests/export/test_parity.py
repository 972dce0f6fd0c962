"""The comparison of a file with its model finds what is wrong, and times are fair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clip3dreid.export.formats import Opened
from clip3dreid.export.graph import Graph, contract_of
from clip3dreid.export.parity import COSINE, as_clips, compare, crops, drawn, latency
from clip3dreid.export.settings import ExportSettings
from clip3dreid.inference.model import ReidModel
from tests.export.models import HEIGHT, WIDTH, noise


def test_the_comparison_feeds_batches_of_one_two_and_five_and_finds_one_wrong_picture(
    model: ReidModel,
) -> None:
    settings = ExportSettings()
    graph = Graph(model, settings)
    seen = []

    def run(pictures: np.ndarray, spoiled: int | None) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = {key: value.numpy() for key, value in graph(torch.tensor(pictures)).items()}
        start = sum(seen)
        seen.append(len(pictures))
        if spoiled is not None and start <= spoiled < start + len(pictures):
            found["embedding"][spoiled - start] = found["embedding"][spoiled - start][::-1]
        return found

    contract = contract_of(model, settings)
    pictures = np.concatenate([drawn(8, HEIGHT, WIDTH), noise(3)])
    parity = compare(Opened(lambda batch: run(batch, None), contract), model, settings, pictures)
    assert seen == [1, 2, 5, 1, 2]
    assert parity.good
    assert parity.pictures == 11
    for spoiled in range(11):
        seen.clear()
        wrong = compare(
            Opened(lambda batch, row=spoiled: run(batch, row), contract), model, settings, pictures
        )
        assert not wrong.good
        ours = model.embed(torch.tensor(pictures[spoiled : spoiled + 1]))[0].double()
        assert wrong.cosine == pytest.approx(float(F.cosine_similarity(ours, ours.flip(0), dim=0)), abs=1e-6)
        assert wrong.difference == pytest.approx(float((ours - ours.flip(0)).abs().max()), rel=1e-4)


def test_features_that_are_too_long_are_found_though_their_cosine_is_one(model: ReidModel) -> None:
    graph = Graph(model, ExportSettings())

    def longer(pictures: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {key: 1.01 * value.numpy() for key, value in graph(torch.tensor(pictures)).items()}

    file = Opened(longer, contract_of(model, ExportSettings()))
    parity = compare(file, model, ExportSettings(), noise(3))
    assert parity.cosine > COSINE
    assert parity.relative == pytest.approx(0.01, rel=0.01)
    assert not parity.good


def test_drawn_pictures_are_always_the_same_and_all_different() -> None:
    pictures = drawn(8, 48, 20)
    assert pictures.shape == (8, 3, 48, 20)
    assert np.array_equal(pictures, drawn(8, 48, 20))
    assert len({picture.tobytes() for picture in pictures}) == 8
    # Neighbouring pixels are alike in the smooth ones.
    steps = np.abs(np.diff(pictures.astype(int), axis=3)).mean((1, 2, 3))
    assert (steps[::2] < 15).all()
    assert (steps[1::2] > 60).all()


def test_crops_are_spread_over_the_folder(tmp_path: Path) -> None:
    for number in range(63):
        path = tmp_path / f"{number // 10}" / f"{number % 10}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 8), (number, 0, 0)).save(path)
    (tmp_path / "notes.txt").write_text("no picture")
    assert crops(tmp_path, 8, 4)[:, 0, 0, 0].tolist() == list(range(0, 63, 2))


def test_crops_are_padded_for_a_model_of_padded_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 20, 3), 200, np.uint8)).save(tmp_path / "a.png")
    assert crops(tmp_path, 8, 8).min() == 200
    padded = crops(tmp_path, 8, 8, square=True)
    assert padded[0, 0, 4].tolist()[0] == padded[0, 0, 4].tolist()[-1] == 0
    assert padded[0, 0, 4, 4] == 200


def test_times_are_medians_taken_by_turns_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    order = []

    def runner(name: str, times: list[float]) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            order.append(name)
            now += times.pop(0)

        return run

    monkeypatch.setattr("time.perf_counter", lambda: now)
    runners = {"a": runner("a", [9.0, 1, 2, 3]), "b": runner("b", [7.0, 4, 5, 6])}
    assert latency(runners, 30) == {"a": 2, "b": 5}
    assert order == ["a", "b"] * 4
    assert latency({"slow": runner("slow", [40.0])}, 30) == {"slow": 40}


def test_pictures_are_put_together_to_clips_and_the_last_is_filled_up() -> None:
    pictures = noise(5)
    clips = as_clips(pictures, 3)
    assert clips.shape == (2, 3, *pictures.shape[1:])
    assert np.array_equal(clips[0], pictures[:3])
    assert np.array_equal(clips[1], pictures[[3, 4, 0]])
    assert as_clips(pictures, 1) is pictures
