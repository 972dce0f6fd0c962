"""Where backgrounds come from, and windows of them."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.synthetic.background_scenes import KINDS, scene
from clip3dreid.synthetic.backgrounds import Pictures, Procedural, canvas_size, window


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([7, seed])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of one colour each, in several formats, modes and folders, beside a file that is none."""
    for index, name in enumerate(["a.png", "b.jpg", "c.PNG", "deep/d.png", "deep/e.webp", "f.bmp"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        picture = Image.new("RGB", (60 + 40 * index, 90), color=(40 * index,) * 3)
        picture.convert("L" if index == 2 else "RGB").save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right and green down, by one a pixel."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(width), np.arange(height)[:, None]
    return picture


def test_a_window_of_the_same_size_copies_pixels() -> None:
    canvas = gradient(160, 200)
    # 100 rows and 50 columns fit at 150 places across and 60 down.
    cut = window(canvas, (0.2, 0.5, 100 / 160), 100, 50)
    np.testing.assert_array_equal(cut, canvas[30:130, 30:80])


@pytest.mark.parametrize(("across", "down", "corner"), [(0, 0, (0, 0)), (1, 1, (60, 150)), (0, 1, (60, 0))])
def test_windows_reach_every_corner(across: float, down: float, corner: tuple[int, int]) -> None:
    canvas = gradient(160, 200)
    row, column = corner
    cut = window(canvas, (across, down, 100 / 160), 100, 50)
    np.testing.assert_array_equal(cut, canvas[row : row + 100, column : column + 50])


@pytest.mark.parametrize("size", [(200, 100), (50, 25), (24, 12)])
def test_a_window_of_another_size_shows_the_same(size: tuple[int, int]) -> None:
    height, width = size
    cut = window(gradient(160, 200), (0.2, 0.5, 100 / 160), height, width).astype(float)
    wide = 100 * width / height
    left = 0.2 * (200 - wide)
    expected = left + (np.arange(width) + 0.5) * wide / width - 0.5
    inner = slice(2, -2)
    # Averages of whole numbers round up by half a level, and so does the warp.
    np.testing.assert_allclose(cut[5, inner, 0], expected[inner], atol=1.01)


def test_a_window_stays_inside_a_canvas_that_is_too_narrow() -> None:
    cut = window(gradient(160, 30), (0.5, 0.0, 0.9), 100, 50)
    assert cut.shape == (100, 50, 3)
    # The whole width is shown, and 60 rows, so that pixels stay square.
    assert (cut[50, 0, 0], cut[50, -1, 0]) == (0, 29)
    assert cut[-1, 25, 1] == pytest.approx(59, abs=1)


def test_a_canvas_is_somewhat_finer_than_its_windows() -> None:
    height, width = canvas_size(256, 128)
    assert 0.6 * height < 256 < height
    assert width > 128


def test_procedural_backgrounds_are_of_the_kinds_asked_for() -> None:
    make = Procedural({"park": 1, "shop": 3, "street": 0})
    found = []
    for seed in range(60):
        drawn = make(rng(seed), "train", 40, 60)
        twin = rng(seed)
        twin.random()  # the number that chose the kind
        state = twin.bit_generator.state
        for kind in KINDS:
            twin.bit_generator.state = state
            if (scene(twin, 40, 60, kind) == drawn).all():
                found.append(kind)
    assert len(found) == 60
    assert set(found) == {"park", "shop"}
    assert found.count("shop") / 60 == pytest.approx(0.75, abs=0.15)


def test_procedural_backgrounds_differ_by_seed_and_repeat() -> None:
    make = Procedural()
    pictures = [make(rng(seed), "train", 40, 60) for seed in range(12)]
    assert len({picture.tobytes() for picture in pictures}) == 12
    np.testing.assert_array_equal(pictures[3], make(rng(3), "train", 40, 60))


def test_kinds_may_come_from_a_yaml_file() -> None:
    assert Procedural(OmegaConf.create({"wall": 2})).kinds == {"wall": 2.0}


@pytest.mark.parametrize("kinds", [{"moon": 1}, {"wall": -1}, {"wall": 0}, {}])
def test_kinds_that_cannot_be_drawn_are_refused(kinds: dict[str, float]) -> None:
    with pytest.raises(InputError, match="backgrounds"):
        Procedural(kinds)


def test_a_folders_pictures_are_split_without_overlap(folder: Path) -> None:
    make = Pictures(str(folder))
    levels = {
        split: {int(make(rng(seed), split, 30, 40).mean().round(-1)) for seed in range(40)}
        for split in ("train", "test")
    }
    assert levels["train"] | levels["test"] == {0, 40, 80, 120, 160, 200}
    assert not levels["train"] & levels["test"]


def test_a_folders_picture_is_cut_to_the_canvas_and_not_stretched(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(gradient(100, 200)).save(tmp_path / name)
    make = Pictures(str(tmp_path))
    canvas = make(rng(1), "train", 100, 50).astype(int)
    assert canvas.shape == (100, 50, 3)
    np.testing.assert_array_equal(canvas[:, 0, 1], np.arange(100))
    assert 45 <= canvas[0, -1, 0] - canvas[0, 0, 0] <= 50
    np.testing.assert_array_equal(canvas, make(rng(1), "train", 100, 50))
    assert (canvas != make(rng(2), "train", 100, 50)).any()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not there; give a folder"):
        Pictures(str(tmp_path / "nowhere"))


def test_a_folder_without_pictures_for_both_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(InputError, match="has 0 pictures"):
        Pictures(str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="has 1 pictures"):
        Pictures(str(tmp_path))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png.*replace or remove this background"):
        Pictures(str(tmp_path))(rng(), "train", 30, 30)
