import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip3dreid.io.files import identify
from clip3dreid.io.pictures import read_rgb
from clip3dreid.io.video_places import DIGITS, FORM, VideoPlace, is_picture_file, picture_status, video_place

number = st.integers(-(10**9), 10**9)


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.integers(0, 10**9),
    st.tuples(number, number, number, number),
)
def test_a_place_is_read_as_it_is_written(video: str, frame: int, box: tuple[int, int, int, int]) -> None:
    path = FORM.format(video, str(frame).zfill(DIGITS), *box)
    assert video_place(path) == VideoPlace(video, frame, *box)


@pytest.mark.parametrize(
    "path",
    [
        "a.mp4",
        "a.mp4#frame=1",
        "a.mp4#frame=&xywh=1,2,3,4",
        "a.mp4#frame=1&xywh=1,2,3",
        "#frame=1&xywh=1,2,3,4",
    ],
)
def test_what_is_written_otherwise_is_the_name_of_a_file(path: str) -> None:
    assert video_place(path) is None
    assert video_place(Path(path)) is None


def test_the_file_after_which_a_place_would_be_named_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4#frame=0000001&xywh=0,0,9,9"
    (tmp_path / "a.mp4").write_bytes(b"a video")
    assert video_place(path) == VideoPlace(str(tmp_path / "a.mp4"), 1, 0, 0, 9, 9)
    rgb = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(rgb).save(path, "PNG")
    assert video_place(path) is None
    assert np.array_equal(read_rgb(path), rgb)
    assert picture_status(path).st_size == path.stat().st_size != 7
    # A link that leads nowhere is a file that is lost, and no place.
    path.unlink()
    path.symlink_to("nowhere")
    assert video_place(path) is None
    assert not is_picture_file(path)


def test_crops_of_one_video_are_two_pictures_with_its_size_and_time(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"a video")
    os.utime(video, ns=(5, 5))
    places = [f"a.mp4#frame=000000{frame}&xywh=0,0,9,9" for frame in (1, 2)]
    assert list(identify(tmp_path, places)) == [(place, 7, 5) for place in places]
    lost = "b.mp4#frame=0000001&xywh=0,0,9,9"
    assert list(identify(tmp_path, [lost], missing_ok=True)) == [(lost, -1, 0)]
    assert is_picture_file(tmp_path / places[0])
    assert not is_picture_file(tmp_path / lost)
