import pytest
from PIL import Image

from clip3dreid.report.parts import fitting_end, font
from clip3dreid.report.search_sheet import Row, ShownPicture, draw_search


@pytest.mark.parametrize("text", ["002_1_c2_000077.png", "W" * 40, "1. 0.603", "", "人" * 30])
def test_a_caption_is_cut_to_the_width_and_keeps_its_end(text):
    shown = fitting_end(text, font(12), 110)
    assert font(12).getlength(shown) <= 110
    assert shown == text or (shown[0] == "…" and len(shown) > 5 and text.endswith(shown[1:]))


def test_the_captions_of_neighbours_do_not_touch(tmp_path):
    Image.new("RGB", (64, 128), "white").save(tmp_path / "a.png")
    hit = ShownPicture(tmp_path / "a.png", caption=("000000_00_c00_000000.png",))
    draw_search(tmp_path / "sheet.png", [Row("words", [], [hit, hit])], columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        # Between the first hit's column, 110 pixels wide, and the second's nothing is drawn.
        left = 2 * 110 + 3 * 8 + 110
        assert sheet.crop((left + 1, 16, left + 7, 16 + 200 + 15)).convert("L").getextrema() == (255, 255)
