"""Faces are found where they are drawn, and what cannot find any says so."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from clip3dreid.data.face_detectors import Box, HaarCascade, HeadRegion, YuNet
from clip3dreid.errors import InputError


def drawn_face():
    """A person of simple shapes, 256 x 128, with the face around column 64 and row 40, 40 pixels wide."""
    picture = Image.new("RGB", (128, 256), (90, 110, 90))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((34, 68, 94, 256), fill=(60, 60, 120))
    pen.ellipse((44, 14, 84, 66), fill=(225, 190, 165))
    pen.pieslice((43, 10, 85, 52), 180, 360, fill=(50, 35, 30))
    pen.ellipse((47, 25, 81, 65), fill=(225, 190, 165))
    for eye in (56, 72):
        pen.rectangle((eye - 5, 32, eye + 5, 34), fill=(70, 45, 35))
        pen.ellipse((eye - 4, 36, eye + 4, 40), fill=(60, 40, 35))
    pen.polygon([(64, 40), (61, 48), (67, 48)], fill=(200, 160, 135))
    pen.ellipse((57, 52, 71, 56), fill=(150, 70, 70))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)))


def haar(**changes):
    settings = {
        "cascades": ["haarcascade_frontalface_default.xml"],
        "height": 512,
        "step": 1.1,
        "neighbours": 3,
        "reach": 0.3,
    }
    return HaarCascade(**(settings | changes))


class TestDetectors:
    @pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no cascades")
    @pytest.mark.parametrize("mirrored", [False, True])
    def test_cascade_finds_a_drawn_face_where_it_is(self, mirrored):
        picture = drawn_face()[:, ::-1] if mirrored else drawn_face()
        boxes = haar()(np.ascontiguousarray(picture))
        assert boxes
        for box in boxes:
            assert abs((box.left + box.right) / 2 - 64) < 6
            assert abs((box.top + box.bottom) / 2 - 43) < 6
            assert 35 < box.right - box.left < 55

    @pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no cascades")
    def test_cascade_finds_nothing_in_plain_grey_nor_below_its_reach(self):
        assert haar()(np.full((256, 128, 3), 90, np.uint8)) == []
        assert haar(reach=0.1)(drawn_face()) == []

    @pytest.mark.skipif(not hasattr(cv2, "CascadeClassifier"), reason="OpenCV 5 has no cascades")
    def test_unknown_cascade_is_named(self):
        with pytest.raises(InputError, match="no_such"):
            haar(cascades=["no_such.xml"])(drawn_face())

    def test_opencv_without_cascades_says_what_to_install(self, monkeypatch):
        monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
        with pytest.raises(InputError, match=r"opencv-python-headless<5.*head_region"):
            haar(cascades=["asked_for_only_here.xml"])(drawn_face())

    def test_head_region_is_a_fixed_share_of_the_picture(self):
        assert HeadRegion(0.2, 0.8, 0.0, 0.25)(np.zeros((200, 100, 3), np.uint8)) == [Box(20, 0, 80, 50)]

    def test_yunet_is_given_the_enlarged_picture_and_its_boxes_are_scaled_back(self, monkeypatch, tmp_path):
        """The network's weights are not ours to ship: a stand-in with OpenCV's interface takes its place."""
        asked = []

        class Network:
            @staticmethod
            def create(model, config, size, score):
                asked.append((model, score))
                return Network()

            def setInputSize(self, size):  # noqa: N802
                asked.append(size)

            def detect(self, bgr):
                asked.append((bgr.shape, bgr[0, 0].tolist()))
                row = np.arange(15, dtype=np.float32)
                row[:4] = 20, 8, 40, 60
                return 1, row[None]

        model = tmp_path / "yunet.onnx"
        model.write_bytes(b"weights")
        monkeypatch.setattr(cv2, "FaceDetectorYN", Network)
        picture = np.full((128, 64, 3), (1, 2, 3), np.uint8)
        assert YuNet(str(model), 0.7, 256)(picture) == [Box(10, 4, 30, 34)]
        assert asked == [(str(model), 0.7), (128, 256), ((256, 128, 3), [3, 2, 1])]

    def test_yunet_without_a_face_gives_no_box(self, monkeypatch, tmp_path):
        class Network:
            @staticmethod
            def create(*_):
                return Network()

            def setInputSize(self, size):  # noqa: N802
                pass

            def detect(self, bgr):
                return 1, None

        (tmp_path / "yunet.onnx").write_bytes(b"weights")
        monkeypatch.setattr(cv2, "FaceDetectorYN", Network)
        assert YuNet(str(tmp_path / "yunet.onnx"), 0.7, 256)(drawn_face()) == []

    def test_file_that_is_no_network_is_named(self, tmp_path):
        (tmp_path / "bad.onnx").write_bytes(b"no network")
        with pytest.raises(InputError, match=r"bad\.onnx") as caught:
            YuNet(str(tmp_path / "bad.onnx"), 0.6, 512)(drawn_face())
        assert "\n" not in str(caught.value)
