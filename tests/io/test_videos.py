"""Frames of videos that the tests write: each carries its number in black and white."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from clip3dreid.errors import InputError
from clip3dreid.io import pictures, videos
from clip3dreid.io.pictures import UnreadablePicture, picture_size, read_rgb
from clip3dreid.io.videos import Video, Videos

av = pytest.importorskip("av", reason="av is missing: pip install 'clip3dreid[video]'")

HEIGHT, WIDTH, BITS, CELL = 48, 96, 6, 16


def frame(number: int) -> np.ndarray:
    rgb = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    rgb[CELL:, :48] = 40, 90, 200
    for bit in range(BITS):
        rgb[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * ((number >> bit) & 1)
    return rgb


def number(rgb: np.ndarray) -> int:
    cells = rgb[CELL // 2, CELL // 2 :: CELL].mean(-1)
    return sum(int(cell > 128) << bit for bit, cell in enumerate(cells))


def write(path: Path, frames: int = 40, codec: str = "mpeg4", key: int = 12, **options: str) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(key), **options})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        for one in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(one), format="rgb24")))
        container.mux(stream.encode())
    return path


CODECS = [("mpeg4", ".mp4"), ("libx264", ".mp4"), ("libx264", ".mkv"), ("mpeg4", ".avi")]


@pytest.mark.parametrize(("codec", "suffix"), CODECS)
def test_a_frame_is_found_by_its_number_in_whatever_order(codec: str, suffix: str, tmp_path: Path) -> None:
    video = Video(write(tmp_path / f"a{suffix}", codec=codec))
    assert (video.frames, video.promised, video.width, video.height) == (40, 40, WIDTH, HEIGHT)
    order = [*range(40), *np.random.default_rng(0).permutation(40).tolist(), 39, 39, 0]
    assert [number(video[one]) for one in order] == order


def test_colours_are_red_green_and_blue(tmp_path: Path) -> None:
    rgb = Video(write(tmp_path / "a.mp4", qmin="1", qmax="3"))[7]
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb[40, 20].astype(int) - [40, 90, 200]).max() <= 12


def test_frames_that_follow_are_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = Video(write(tmp_path / "a.mp4", key=10))
    looked: list[int] = []
    seek = Video._seek
    monkeypatch.setattr(Video, "_seek", lambda self, key: (looked.append(key), seek(self, key))[1])
    for one in (0, 1, 5, 9, 10, 14, 14, 19):
        assert number(video[one]) == one
    assert looked == []
    # Far ahead from the key frame before it on, and back.
    assert number(video[37]) == 37
    assert number(video[3]) == 3
    assert looked == [30, 0]


@pytest.mark.parametrize(("codec", "share"), [("mpeg4", 0.6), ("mpeg4", 0.8), ("libx264", 0.8)])
def test_a_video_that_ends_early_has_the_frames_that_are_there(
    codec: str, share: float, tmp_path: Path
) -> None:
    whole = write(tmp_path / "whole.mp4", codec=codec).read_bytes()
    short = tmp_path / "short.mp4"
    short.write_bytes(whole[: int(len(whole) * share)])
    video = Video(short)
    assert 0 < video.frames < video.promised == 40
    for one in range(video.frames):
        try:
            assert number(video[one]) == one
        except UnreadablePicture:  # which needs one that is lost
            assert one > 0
    with pytest.raises(
        UnreadablePicture, match=rf"frame 39 of .*short\.mp4: the video has {video.frames} frames"
    ):
        video[39]


def test_what_is_no_video_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read as a video: .*; give a file such as MP4"):
        Video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"b\.mp4 cannot be read as a video: No such file"):
        Video(tmp_path / "b.mp4")
    whole = write(tmp_path / "whole.mp4").read_bytes()
    # Without its table of contents, which cameras write last, nothing of a file can be read.
    at = whole.index(b"moov")
    (tmp_path / "c.mp4").write_bytes(whole[: at - 4])
    with pytest.raises(InputError, match=r"c\.mp4 "):
        Video(tmp_path / "c.mp4")


def test_a_video_to_be_shown_turned_is_refused(tmp_path: Path) -> None:
    video = Video(write(tmp_path / "a.mp4"))

    class Turned:
        rotation = 90

    with pytest.raises(UnreadablePicture, match=r"frame 3 of .* is to be shown turned"):
        video._rgb(3, Turned())


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"videos need av; pip install 'clip3dreid\[video\]'"):
        Video(tmp_path / "a.mp4")


def test_few_videos_are_open_at_a_time_and_none_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "MOST_OPEN", 2)
    files = [write(tmp_path / f"{one}.mp4", frames=3) for one in range(3)]
    held = Videos()
    first = held[files[0]]
    assert held[files[1]] is not first
    assert held[files[0]] is first
    assert held[files[2]][2].shape == (HEIGHT, WIDTH, 3)
    # The one that was asked for longest ago was closed: it is another now.
    assert held[files[0]] is first
    assert number(held[files[1]][1]) == 1
    assert number(pickle.loads(pickle.dumps(held))[files[1]][2]) == 2  # noqa: S301 - our own


def test_a_place_in_a_video_is_read_as_a_picture_is(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", frames=5)
    whole = Video(file)[3]
    for box, rows, columns in (
        ("10,20,30,15", slice(20, 35), slice(10, 40)),
        ("-5,-3,15,10", slice(0, 7), slice(0, 10)),  # as much as the frame shows of it
        (f"80,40,{WIDTH},{HEIGHT}", slice(40, HEIGHT), slice(80, WIDTH)),
    ):
        for path in (f"{file}#frame=3&xywh={box}", Path(f"{file}#frame=0000003&xywh={box}")):
            rgb = read_rgb(path)
            assert np.array_equal(rgb, whole[rows, columns])
            assert picture_size(path) == rgb.shape[1::-1]
    rgb = read_rgb(f"{file}#frame=3&xywh=0,0,{WIDTH},{HEIGHT}")
    rgb[:] = 0  # it is the reader's own
    assert np.array_equal(read_rgb(f"{file}#frame=3&xywh=0,0,{WIDTH},{HEIGHT}"), whole)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("a.mp4#frame=5&xywh=0,0,9,9", "cannot read frame 5 of {}a.mp4: the video has 5 frames; look at it"),
        (
            "a.mp4#frame=-1&xywh=0,0,9,9",
            "cannot read frame -1 of {}a.mp4: the video has 5 frames; look at it",
        ),
        (
            "b.mp4#frame=5&xywh=0,0,9,9",
            "cannot read frame 5 of {}b.mp4: No such file or directory; look at it",
        ),
        (
            "a.mp4#frame=1&xywh=96,0,9,9",
            "cannot read frame 1 of {}a.mp4: the box 96,0,9,9 lies outside the frame, 96 x 48 pixels; look at it",
        ),
        ("a.mp4#frame=1&xywh=3,3,0,9", "the box 3,3,0,9 lies outside the frame"),
        ("c.mp4#frame=0&xywh=0,0,9,9", "cannot read frame 0 of {}c.mp4: Invalid data found"),
        # No place, so a file of that name.
        ("a.mp4#frame=1", "cannot read the picture {}a.mp4#frame=1: there is no such file"),
    ],
)
def test_a_place_that_cannot_be_read_is_told_with_video_and_frame(
    place: str, said: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.mp4", frames=5)
    (tmp_path / "c.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(UnreadablePicture) as refused:
        read_rgb(tmp_path / place, "look at it")
    assert said.format(f"{tmp_path}/") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_crops_of_one_frame_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.mp4", frames=20)
    decoded: list[int] = []
    rgb = Video._rgb
    monkeypatch.setattr(Video, "_rgb", lambda self, one, got: (decoded.append(one), rgb(self, one, got))[1])
    crops = [read_rgb(f"{file}#frame=3&xywh={left},0,{CELL},9") for left in (0, CELL, 2 * CELL)]
    assert [crop.mean() > 128 for crop in crops] == [True, True, False]
    assert decoded == [3]


def test_where_frames_are_is_found_once_for_a_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.mp4", frames=9)
    first = Video(file)
    assert Video(file)._times is first._times
    held = Videos()
    assert held[file].frames == 9
    write(file, frames=7)
    os.utime(file, ns=(1, 1))  # whatever the disk's clock
    assert held[file].frames == Video(file).frames == 7
    # Of so many frames that they would take too much memory only the last are kept.
    monkeypatch.setattr(videos, "_MOST_TIMES", 10)
    again = Video(write(tmp_path / "b.mp4", frames=9))
    assert Video(tmp_path / "b.mp4")._times is again._times
    assert len(videos._INDICES) == 1


def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4")
    held = Videos()
    assert number(held[file][20]) == 20
    child = os.fork()
    if not child:
        # Far enough that the parent, whose file it would be, would lose its place.
        right = [number(held[file][one]) for one in (21, 22, 39)] == [21, 22, 39]
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [number(held[file][one]) for one in range(21, 40)] == list(range(21, 40))


def test_too_many_pixels_are_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.mp4", frames=3)
    monkeypatch.setattr(pictures, "MOST_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(
        UnreadablePicture, match=r"a\.mp4: it has 96 x 48 pixels, and more than 4,607 are not"
    ):
        read_rgb(f"{file}#frame=0&xywh=0,0,9,9")


def test_a_missing_package_is_no_fault_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.mp4", frames=3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="videos need av") as refused:
        read_rgb(f"{file}#frame=0&xywh=0,0,9,9")
    assert not isinstance(refused.value, UnreadablePicture)
