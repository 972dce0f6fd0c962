"""The copy is made with detectors whose answer is known, so that every pixel that changes is accounted for."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from clip3dreid.data.blur_settings import BlurSettings
from clip3dreid.data.blurring import blur_boxes, blur_folder
from clip3dreid.data.face_detectors import Box, YuNet
from clip3dreid.errors import InputError
from clip3dreid.io.locks import LOCK
from clip3dreid.io.pictures import read_rgb
from tests.processes import PATIENCE_S, await_end, holding
from tests.small_disk import fill, small_disk

BOX = Box(left=5, top=2, right=13, bottom=12)


@dataclass(frozen=True)
class BrightFaces:
    """Finds a face at one place in every picture that is bright there; `pause` seconds a picture."""

    pause: float = 0.0

    def __call__(self, rgb):
        time.sleep(self.pause)
        return [BOX] if rgb[BOX.top : BOX.bottom, BOX.left : BOX.right].mean() > 128 else []


def noise(seed, bright=True, height=40, width=20):
    """Grey noise, a little coloured: colour noise would not survive JPEG's halved colour resolution."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(20, 230, (height, width, 1), dtype=np.uint8) + np.array([0, 9, 19], np.uint8)
    picture[BOX.top : BOX.bottom, BOX.left : BOX.right] //= 2
    picture[BOX.top : BOX.bottom, BOX.left : BOX.right] += 128 if bright else 0
    return picture


def write_tree(root, pictures=3):
    """Two folders of pictures, every third without a face, a list, an empty folder and a hidden file."""
    for folder in ("train", "query/deep"):
        (root / folder).mkdir(parents=True)
        for i in range(pictures):
            suffix = ("png", "jpg")[i % 2]
            picture = Image.fromarray(noise(i, bright=i % 3 != 2))
            picture.save(root / folder / f"{i}_1_0.{suffix}", quality=90)
    (root / "gallery").mkdir()
    (root / "train" / "list.txt").write_text("0_1_0.png 0\n")
    (root / ".DS_Store").write_bytes(b"hidden")
    return root


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def blur(source, out, detector=None, update=None, **how):
    settings = {"margin": 0.0, "strength": 0.3, "workers": 0}
    return blur_folder(source, out, detector or BrightFaces(), BlurSettings(**(settings | how)), update)


class TestBlurring:
    def test_only_the_box_changes_and_loses_its_detail(self):
        picture = noise(0)
        before = picture.copy()
        blurred = blur_boxes(picture, [BOX], margin=0, strength=0.3)
        np.testing.assert_array_equal(picture, before)
        inside = np.zeros((40, 20), bool)
        inside[2:12, 5:13] = True
        np.testing.assert_array_equal(blurred[~inside], picture[~inside])
        assert blurred[inside].std(0).max() < 0.3 * picture[inside].std(0).min()
        np.testing.assert_allclose(blurred[inside].mean(0), picture[inside].mean(0), atol=8)

    def test_margin_widens_the_box_by_its_share_on_each_side(self):
        changed = (blur_boxes(noise(0), [BOX], margin=0.25, strength=0.3) != noise(0)).any(2)
        # A quarter of 8 columns and of 10 rows, the latter rounded to even and cut off at the top.
        assert np.flatnonzero(changed.any(0)).tolist() == list(range(3, 15))
        assert np.flatnonzero(changed.any(1)).tolist() == list(range(0, 14))

    @pytest.mark.parametrize(
        "box", [Box(-9, -9, 4, 4), Box(15, 30, 99, 99), Box(30, 50, 40, 60), Box(3, 3, 3, 9)]
    )
    def test_boxes_may_reach_beyond_the_picture_or_be_empty(self, box):
        changed = (blur_boxes(noise(0), [box], margin=0, strength=0.3) != noise(0)).any(2)
        expected = np.zeros((40, 20), bool)
        expected[max(box.top, 0) : box.bottom, max(box.left, 0) : box.right] = True
        assert not changed[~expected].any()
        assert changed[expected].mean() > 0.9 if expected.any() else not changed.any()


class TestCopy:
    def test_copy_has_the_same_tree_and_leaves_faceless_pictures_and_lists_byte_for_byte(self, tmp_path):
        source = write_tree(tmp_path / "source")
        report = blur(source, tmp_path / "out")
        before, after = tree(source), tree(tmp_path / "out")
        del before[".DS_Store"]
        assert set(after) == set(before) | {"blur_faces.csv", "blur_faces.json"}
        same = {path for path in before if before[path] == after[path]}
        blurred = {"train/0_1_0.png", "train/1_1_0.jpg", "query/deep/0_1_0.png", "query/deep/1_1_0.jpg"}
        assert set(before) - same == blurred
        assert report._asdict() == {
            "pictures": 6,
            "boxes": 4,
            "without_face": 2,
            "copied": 1,
            "unreadable": 0,
        }

    def test_faces_in_videos_are_warned_of(self, tmp_path, caplog):
        source = write_tree(tmp_path / "source")
        blur(source, tmp_path / "out")
        assert not caplog.messages
        for name in ("train/a.MP4", "b.mkv"):
            (source / name).write_bytes(b"a video")
        blur(source, tmp_path / "out")
        (said,) = caplog.messages
        assert (
            "2 videos are copied with the faces in them: b.mkv, train/a.MP4; write their frames out" in said
        )

    def test_blurred_png_differs_in_the_box_alone_and_jpeg_hardly_elsewhere(self, tmp_path):
        source = write_tree(tmp_path / "source")
        blur(source, tmp_path / "out")
        inside = np.zeros((40, 20), bool)
        inside[2:12, 5:13] = True
        for name, tolerance in (("0_1_0.png", 0), ("1_1_0.jpg", 6)):
            old, new = (read_rgb(root / "train" / name).astype(int) for root in (source, tmp_path / "out"))
            # JPEG's 16-pixel blocks carry a change of the box a little way out of it.
            outside = ~inside if tolerance == 0 else np.arange(40)[:, None] >= np.full(20, 16)
            assert np.abs(new - old)[outside].max() <= tolerance
            assert np.abs(new - old)[inside].mean() > 10
        with (
            Image.open(source / "train/1_1_0.jpg") as old,
            Image.open(tmp_path / "out/train/1_1_0.jpg") as new,
        ):
            assert new.format == "JPEG"
            assert new.quantization == old.quantization

    @pytest.mark.parametrize(
        ("name", "mode", "format"),
        [
            ("a.png", "RGB", "JPEG"),
            ("a.jpg", "L", "JPEG"),
            ("a.jpg", "CMYK", "JPEG"),
            ("a.webp", "RGB", "WEBP"),
            ("a.png", "P", "GIF"),
            ("a.bmp", "RGB", "BMP"),
            ("a.tif", "RGBA", "TIFF"),
        ],
    )
    def test_every_format_is_blurred_and_still_a_picture(self, tmp_path, name, mode, format):
        (tmp_path / "source").mkdir()
        Image.fromarray(noise(0)).convert(mode).save(tmp_path / "source" / name, format)
        assert blur(tmp_path / "source", tmp_path / "out").boxes == 1
        old, new = (read_rgb(tmp_path / root / name).astype(int) for root in ("source", "out"))
        assert np.abs(new - old)[2:12, 5:13].mean() > 10
        assert np.abs(new - old)[16:].mean() < 4
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == (format if format != "GIF" else "PNG")

    def test_turned_picture_is_blurred_where_it_is_seen(self, tmp_path):
        (tmp_path / "source").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        upright = noise(0)
        Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "source/a.png", exif=exif)
        blur(tmp_path / "source", tmp_path / "out")
        changed = (read_rgb(tmp_path / "out/a.png") != upright).any(2)
        assert changed[2:12, 5:13].mean() > 0.9
        assert changed.sum() <= 80

    def test_listing_and_report_say_what_became_of_each_file(self, tmp_path):
        source = write_tree(tmp_path / "source")
        report = blur(source, tmp_path / "out")
        listing = pl.read_csv(tmp_path / "out/blur_faces.csv")
        assert listing.filter(pl.col("outcome") == "no_face")["path"].to_list() == [
            "query/deep/2_1_0.png",
            "train/2_1_0.png",
        ]
        assert listing["path"].to_list() == sorted(listing["path"])
        written = json.loads((tmp_path / "out/blur_faces.json").read_text())
        assert written["share_without_face"] == report.share_without_face == 2 / 6
        assert written["detector"] == "BrightFaces(pause=0.0)"
        assert written["kernel"] == {"kind": "Gaussian", "sigma_of_longer_side": 0.3, "margin": 0.0}

    def test_processes_make_the_same_copy_as_one(self, tmp_path):
        source = write_tree(tmp_path / "source", pictures=12)
        seen = []
        blur(source, tmp_path / "one")
        blur(source, tmp_path / "two", workers=2, update=lambda done, total: seen.append((done, total)))
        assert tree(tmp_path / "one") == tree(tmp_path / "two")
        assert seen == [(i + 1, 25) for i in range(25)]

    def test_links_to_folders_are_followed(self, tmp_path):
        source = write_tree(tmp_path / "source")
        (source / "linked").symlink_to(source / "train")
        blur(source, tmp_path / "out")
        assert (tmp_path / "out/linked/0_1_0.png").is_file()


def unfinished(source, out):
    """A copy that was stopped at its last picture but one."""
    last = source / "train/1_1_0.jpg"
    whole = last.read_bytes()
    last.write_bytes(b"")
    with pytest.raises(InputError):
        blur(source, out)
    last.write_bytes(whole)


class TestTrouble:
    def test_unreadable_picture_ends_the_run_by_name_and_the_next_run_goes_on(self, tmp_path):
        source = write_tree(tmp_path / "source")
        whole = (source / "train/0_1_0.png").read_bytes()
        (source / "train/0_1_0.png").write_bytes(whole[:50])
        with pytest.raises(InputError, match=r"train/0_1_0\.png"):
            blur(source, tmp_path / "out")
        (source / "train/0_1_0.png").write_bytes(whole)
        assert blur(source, tmp_path / "out").pictures == 6
        assert not (tmp_path / "out/.blur_faces").exists()

    def test_skipped_pictures_are_left_out_counted_and_tried_again(self, tmp_path):
        source = write_tree(tmp_path / "source")
        whole = (source / "train/0_1_0.png").read_bytes()
        (source / "train/0_1_0.png").write_bytes(whole[:50])
        assert blur(source, tmp_path / "out", on_error="skip").unreadable == 1
        assert not (tmp_path / "out/train/0_1_0.png").exists()
        (source / "train/0_1_0.png").write_bytes(whole)
        report = blur(source, tmp_path / "out")
        assert (report.pictures, report.unreadable) == (6, 0)

    def test_folder_that_holds_something_else_is_left_alone(self, tmp_path):
        source = write_tree(tmp_path / "source")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.txt").write_text("precious")
        with pytest.raises(InputError, match=r"holds something else.*overwrite=true"):
            blur(source, tmp_path / "out")
        assert list(tree(tmp_path / "out")) == ["thesis.txt"]
        assert blur(source, tmp_path / "out", overwrite=True).pictures == 6
        assert (tmp_path / "out/thesis.txt").read_text() == "precious"

    def test_copy_with_other_settings_is_refused_and_overwritten_on_demand(self, tmp_path):
        source = write_tree(tmp_path / "source")
        blur(source, tmp_path / "out")
        with pytest.raises(InputError, match="kernel"):
            blur(source, tmp_path / "out", strength=0.1)
        blur(source, tmp_path / "out", strength=0.1, overwrite=True)
        blur(source, tmp_path / "fresh", strength=0.1)
        assert tree(tmp_path / "out") == tree(tmp_path / "fresh")

    def test_finished_copy_is_brought_up_to_date_without_doing_the_rest_again(self, tmp_path):
        source = write_tree(tmp_path / "source")
        blur(source, tmp_path / "out")
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/train").iterdir()}
        Image.fromarray(noise(99)).save(source / "train/9_1_0.png")
        assert blur(source, tmp_path / "out").pictures == 7
        assert {path: path.stat().st_mtime_ns for path in times} == times

    def test_overwrite_replaces_a_copy_and_nobody_elses_files(self, tmp_path):
        source, other = write_tree(tmp_path / "source"), write_tree(tmp_path / "other")
        (other / "train/1_1_0.jpg").rename(other / "train/8_1_0.jpg")
        blur(other, tmp_path / "out")
        (tmp_path / "out/train/mine.txt").write_text("precious")
        blur(source, tmp_path / "out", overwrite=True)
        blur(source, tmp_path / "fresh")
        assert tree(tmp_path / "out") == tree(tmp_path / "fresh") | {"train/mine.txt": b"precious"}

    @pytest.mark.parametrize("made", [False, True])
    def test_overwrite_refuses_to_write_over_files_of_somebody_else(self, tmp_path, made):
        """A wrong `out`, such as another data set of the same layout."""
        source, out = write_tree(tmp_path / "source"), tmp_path / "out"
        if made:
            blur(source, out)
            Image.fromarray(noise(5)).save(source / "train/7_1_0.png")
            (out / "train/7_1_0.png").write_text("precious")
        else:
            write_tree(out)
        before = tree(out)
        for overwrite in (True, False):
            with pytest.raises(InputError, match=r"would be written over|holds something else"):
                blur(source, out, overwrite=overwrite)
        assert tree(out) == before

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        "place", [".blur_faces", "train", "train/0_1_0.png", ".blur_faces/done.jsonl", "blur_faces.csv"]
    )
    def test_nothing_is_written_or_removed_through_a_link(self, tmp_path, place, overwrite):
        source, out = write_tree(tmp_path / "source"), tmp_path / "out"
        unfinished(source, out)
        precious = tmp_path / "precious"
        precious.mkdir()
        for name in ("settings.json", "done.jsonl", "0_1_0.png", "files.json", ".hidden"):
            (precious / name).write_text("precious")
        before = tree(precious)
        if (out / place).is_dir():
            for path in (out / place).iterdir():
                path.rename(tmp_path / path.name)
            (out / place).rmdir()
            (out / place).symlink_to(precious)
        else:
            (out / place).unlink(missing_ok=True)
            (out / place).symlink_to(precious / "done.jsonl")
        with contextlib.suppress(InputError):
            blur(source, out, overwrite=overwrite)
            # It is there, and is left as it is.
            assert (place, overwrite) == ("train/0_1_0.png", False)
        assert tree(precious) == before
        assert (out / place).is_symlink()

    def test_the_folder_itself_may_be_a_link_to_a_large_disk(self, tmp_path):
        source = write_tree(tmp_path / "source")
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk")
        blur(source, tmp_path / "out")
        blur(source, tmp_path / "fresh")
        assert tree(tmp_path / "disk") == tree(tmp_path / "fresh")

    @pytest.mark.parametrize("text", ["", "path,outcome\n", "a,b,c,d\n1,2,3,4\n", "path\n\xff\n"])
    def test_a_damaged_list_is_one_line(self, tmp_path, text):
        source = write_tree(tmp_path / "source")
        blur(source, tmp_path / "out")
        (tmp_path / "out/blur_faces.csv").write_text(text, encoding="latin-1")
        if text.startswith("path,"):
            # Nothing is said to be done, so whatever is there is somebody's.
            with pytest.raises(InputError, match="would be written over"):
                blur(source, tmp_path / "out")
            return
        with pytest.raises(InputError, match=r"blur_faces\.csv cannot be read as the list of a blurred copy"):
            blur(source, tmp_path / "out")

    def test_a_folder_in_use_is_refused(self, tmp_path):
        source = write_tree(tmp_path / "source")
        with (
            holding(tmp_path / "out", "blurs faces") as holder,
            pytest.raises(InputError, match=rf"in use: process {holder} .*blurs faces"),
        ):
            blur(source, tmp_path / "out")
        assert blur(source, tmp_path / "out").pictures == 6

    def test_a_folder_or_list_that_cannot_be_written_is_one_line(self, tmp_path, monkeypatch):
        source = write_tree(tmp_path / "source")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(InputError, match=r"out=.*file is a file"):
            blur(source, tmp_path / "file")
        with pytest.raises(InputError, match=r"cannot write .*file/out"):
            blur(source, tmp_path / "file" / "out")

        whole = Path.open

        def read_only(path, mode="r", *how, **more):
            if mode == "a":
                raise OSError(30, "Read-only file system", str(path))
            return whole(path, mode, *how, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", read_only)
            with pytest.raises(InputError, match=r"cannot write .*done\.jsonl: Read-only file system"):
                blur(source, tmp_path / "out")
        assert blur(source, tmp_path / "out").pictures == 6

    @pytest.mark.slow
    @pytest.mark.parametrize("leave", range(0, 60_000, 6_000))
    def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on(self, tmp_path, leave):
        source = write_tree(tmp_path / "source", pictures=12)
        blur(source, tmp_path / "whole")
        with small_disk(tmp_path / "disk", 400) as disk:
            filler = fill(disk, leave=leave)
            with pytest.raises(InputError, match="No space left on device"):
                blur(source, disk / "out")
            filler.unlink()
            blur(source, disk / "out")
            assert tree(disk / "out") == tree(tmp_path / "whole")

    @pytest.mark.parametrize(("source", "out"), [("a", "a"), ("a", "a/b"), ("a/b", "a")])
    def test_folders_in_one_another_are_refused(self, tmp_path, source, out):
        (tmp_path / "a/b").mkdir(parents=True)
        with pytest.raises(InputError, match="lie in one another"):
            blur(tmp_path / source, tmp_path / out)

    def test_missing_source_and_unknown_choice_are_named(self, tmp_path):
        with pytest.raises(InputError, match="nowhere"):
            blur(tmp_path / "nowhere", tmp_path / "out")
        with pytest.raises(InputError, match="on_error=ignore"):
            blur(tmp_path, tmp_path / "out", on_error="ignore")

    def test_circle_of_links_is_refused(self, tmp_path):
        source = write_tree(tmp_path / "source")
        (source / "train/up").symlink_to(source)
        with pytest.raises(InputError, match="links to a folder that holds it"):
            blur(source, tmp_path / "out")

    def test_detector_that_cannot_work_leaves_nothing_behind(self, tmp_path):
        source = write_tree(tmp_path / "source")
        with pytest.raises(InputError, match="is not a file"):
            blur(source, tmp_path / "out", YuNet("missing.onnx", 0.6, 512))
        assert not (tmp_path / "out").exists()


def test_killed_run_leaves_no_half_file_and_the_next_one_finishes_the_same_tree(tmp_path):
    source = write_tree(tmp_path / "source", pictures=20)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.data.test_blurring import BrightFaces, blur\n"
        "if __name__ == '__main__':\n"
        "    blur(*map(Path, sys.argv[1:]), BrightFaces(0.02), workers=1)\n"
    )
    command = [sys.executable, str(program), str(source), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(command, env=environment, start_new_session=True)
    train = tmp_path / "out/query/deep"
    deadline = time.monotonic() + PATIENCE_S
    while not (train.is_dir() and len(list(train.iterdir())) > 4) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.wait()
    await_end(run.pid)
    # The lock is free, but who held it had no time to take its file away.
    (tmp_path / "out" / LOCK).unlink()
    left = tree(tmp_path / "out")
    assert ".blur_faces/settings.json" in left
    blur(source, tmp_path / "whole", BrightFaces(0.02))
    whole = tree(tmp_path / "whole")
    made = {path for path in left if not path.startswith((".blur_faces", "blur_faces"))}
    assert 4 < sum(left[path] is not None for path in made) < 41
    assert all(left[path] == whole[path] for path in made)
    blur(source, tmp_path / "out", BrightFaces(0.02))
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.gif", "a.dat", "a"])
def test_a_picture_is_blurred_whatever_its_suffix(tmp_path, name):
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(0)).save(tmp_path / "in" / name, "PNG")
    report = blur(tmp_path / "in", tmp_path / "out", margin=0.1)
    assert (report.pictures, report.copied, report.boxes) == (1, 0, 1)
    assert (tmp_path / "out" / name).read_bytes() != (tmp_path / "in" / name).read_bytes()


def test_a_picture_that_cannot_be_read_is_never_copied_with_its_faces(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.heic").write_bytes(b"somebody's face")
    with pytest.raises(InputError, match=r"a\.heic.* leave it out with on_error=skip"):
        blur(tmp_path / "in", tmp_path / "out", margin=0.1)
    report = blur(tmp_path / "in", tmp_path / "out", margin=0.1, on_error="skip")
    assert (report.unreadable, report.copied) == (1, 0)
    assert not (tmp_path / "out/a.heic").exists()


def test_names_that_are_not_utf8_are_refused_before_anything_is_copied(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(InputError, match="1 file names are not UTF-8"):
        blur(tmp_path / "in", tmp_path / "out", margin=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -0.1}, "margin=-0.1 must be a number, 0 or more"),
        ({"strength": 0.0}, "strength=0.0 must be a number above 0"),
        ({"workers": -1}, "workers=-1 must be a whole number, 0 or more"),
    ],
)
def test_settings_that_blur_nothing_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        BlurSettings(**settings)
