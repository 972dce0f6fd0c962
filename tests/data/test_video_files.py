from pathlib import Path

import numpy as np
import pytest

from clip3dreid.data.clips import ClipSettings, EvaluationClips
from clip3dreid.data.images import TestView
from clip3dreid.data.tracklets import tracklets
from clip3dreid.data.video_files import VideoCrops, read
from clip3dreid.errors import InputError
from tests.io.test_videos import CELL, HEIGHT, WIDTH, av, number, write

assert av  # which the other file asks for

HEADER = "video,tracklet,frame,left,top,width,height,person,camera,clothes,split,role"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "tracks.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_boxes_of_a_table_are_cut_out_of_their_frames(tmp_path: Path) -> None:
    write(tmp_path / "hall.mp4")
    write(tmp_path / "door.mp4", frames=20)
    root = table(
        tmp_path,
        "hall.mp4,7,12,0,0,96,16,ann,1,red,test,query",
        "hall.mp4,7,11,0,0,96,16,ann,1,red,test,query",
        "hall.mp4,7,11,0,16,48,32,bob,1,red,test,query",
        "door.mp4,7,19,-5,-3,101,19,ann,2,blue,test,gallery",
    )
    manifest = read(root)
    rows = manifest.table.select("path", "person", "camera", "clothes", "tracklet", "frame").rows()
    assert rows[0] == ("door.mp4#frame=19&xywh=0,0,96,16", "ann", "2", "ann_blue", "7", 19)
    # People share `red`, so it is each one's own.
    assert {row[3] for row in rows} == {"ann_blue", "ann_red", "bob_red"}
    crops = VideoCrops(manifest.root, manifest.table["path"].to_list())
    assert len(crops) == 4
    for row, (path, _, _, _, _, frame) in enumerate(rows):
        if "0,0,96,16" in path:
            assert number(np.vstack([crops[row]] * 2)) == frame
        else:
            assert crops[row].shape == (32, 48, 3)
            assert crops[row].mean((0, 1)).argmax() == 2  # blue


def test_tracklets_and_clips_are_made_of_them_as_of_files(tmp_path: Path) -> None:
    write(tmp_path / "hall.mp4")
    rows = [f"hall.mp4,1,{frame},0,0,{WIDTH},{HEIGHT},ann,1,,test,gallery" for frame in range(40)]
    manifest = read(table(tmp_path, *rows, f"hall.mp4,2,0,0,0,{WIDTH},{HEIGHT},bob,1,,test,query"))
    part = manifest.part("test", "gallery")
    found = tracklets(part, "videos")
    assert found.table["frames"].to_list() == [40]
    crops = VideoCrops(manifest.root, part["path"].to_list())
    clips = EvaluationClips(crops.__getitem__, found, TestView(HEIGHT, WIDTH), ClipSettings())
    images = clips.__getitems__(range(len(clips))).images.permute(0, 1, 3, 4, 2).numpy()
    seen = [[number(image) for image in clip] for clip in images]
    assert seen[1] == list(range(1, 32, 4))
    assert seen[4] == list(range(32, 40))


def test_rows_beyond_the_end_of_a_video_are_refused_or_counted(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = [f"cut.mp4,1,{frame},0,0,9,9,ann,1,,test,gallery" for frame in range(40)]
    root = table(
        tmp_path, *rows, "whole.mp4,2,0,0,0,9,9,ann,1,,test,query", "whole.mp4,2,40,0,0,9,9,ann,1,,test,query"
    )
    with pytest.raises(InputError) as refused:
        read(root)
    message = str(refused.value)
    assert "\n" not in message
    assert "of 42 rows lie beyond the end of their videos: frame " in message
    assert "of 40 frames are there)" in message
    assert "frame 40 of whole.mp4 (40 frames)" in message
    manifest = read(root, on_error="skip")
    assert any("lie beyond the end of their videos" in note and "left out" in note for note in manifest.notes)
    assert 0 < len(manifest.part("test", "gallery")) < 40
    assert len(manifest.part("test", "query")) == 1


def test_boxes_outside_their_frame_are_refused_or_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames=3)
    good = "a.mp4,1,0,0,0,9,9,ann,1,,test,query", "a.mp4,2,1,0,0,9,9,ann,1,,test,gallery"
    root = table(tmp_path, *good, f"a.mp4,1,2,{WIDTH},0,9,9,ann,1,,test,query")
    with pytest.raises(InputError, match=r"1 of 3 rows have their box outside the frame: frame 2 of a\.mp4"):
        read(root)
    assert len(read(root, on_error="skip").table) == 2


def test_missing_videos_are_listed(tmp_path: Path) -> None:
    root = table(tmp_path, "a.mp4,1,0,0,0,9,9,ann,1,,test,query", "b.mp4,1,0,0,0,9,9,ann,1,,test,query")
    with pytest.raises(InputError, match=r"2 videos of .*tracks\.csv are not in .*: a\.mp4, b\.mp4; "):
        read(root)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            "video,frame,person,split,role",
            "a.mp4,0,ann,test,query",
            "no column tracklet, left, top, right, bottom",
        ),
        (HEADER, "a.mp4,1,,0,0,9,9,ann,1,,test,query", "1 rows lack one of video, frame, tracklet"),
        (HEADER, "a.mp4,1,0.5,0,0,9,9,ann,1,,test,query", "frame '0.5' is of the wrong kind"),
        (HEADER, "a.mp4,1,0,0,0,9,9,ann,1,,test,probes", "role"),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path: Path, header: str, row: str, said: str) -> None:
    write(tmp_path / "a.mp4", frames=3)
    with pytest.raises(InputError, match=said):
        read(table(tmp_path, row, header=header))


def test_a_path_that_names_no_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jpg names no frame of a video; make the manifest anew"):
        VideoCrops(tmp_path, ["a.jpg"])[0]


def test_crops_of_one_frame_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4", frames=5)
    places = [f"a.mp4#frame=3&xywh={left},0,{CELL},9" for left in (0, CELL, 2 * CELL)]
    crops = VideoCrops(tmp_path, places)
    frames = [crops[row].base for row in range(3)]
    video = crops._videos[tmp_path / "a.mp4"]
    assert video._last is not None
    assert [int(crops[row].mean() > 128) for row in range(3)] == [1, 1, 0]
    del frames
