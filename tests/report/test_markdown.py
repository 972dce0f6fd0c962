import re
from pathlib import Path

from PIL import Image

from clip3dreid.report.markdown import write_markdown
from tests.report.test_html import NASTY, document


def test_figures_lists_and_bodies_lie_beside_the_page(tmp_path: Path) -> None:
    page = write_markdown(document(tmp_path, "tame"), tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    assert named == {"cmc.png", "sheet.png", "lists.jpg", "body-1.png", "body-1.glb"}
    assert {path.name for path in page.parent.iterdir()} == named | {"report.md"}
    for name in named - {"body-1.glb"}:
        with Image.open(page.parent / name) as picture:
            assert min(picture.size) >= 32
    assert (page.parent / "body-1.glb").read_bytes().startswith(b"glTF")


def test_texts_are_no_markup_and_a_fence_is_longer_than_any_inside(tmp_path: Path) -> None:
    text = (write_markdown(document(tmp_path, f"{NASTY} ```` | *x*"), tmp_path / "out")).read_text(
        encoding="utf-8"
    )
    outside = re.sub(r"^`{5}\n.*?^`{5}$", "", text, flags=re.M | re.S)
    assert outside != text
    assert "<script" not in outside.replace("\\<script", "")
    assert "*x*" not in outside.replace("\\*x\\*", "")


def test_right_and_wrong_frames_of_a_sheet_differ_in_their_line(tmp_path: Path) -> None:
    from clip3dreid.report.search_sheet import RIGHT, WRONG, Row, ShownPicture, search_sheet

    Image.new("RGB", (110, 200), "white").save(tmp_path / "a.png")
    hits = [ShownPicture(tmp_path / "a.png", right=right) for right in (True, False)]
    sheet = search_sheet([Row("q", [ShownPicture(tmp_path / "a.png")], hits)], columns=2).picture

    def share(colour: str, place: int) -> float:
        wanted = tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
        left = 2 * 110 + 3 * 8 + place * 118 - 3
        top = [sheet.getpixel((x, 16 - 3)) for x in range(left, left + 116)]
        return sum(pixel == wanted for pixel in top) / len(top)

    assert share(RIGHT, 0) == 1
    assert 0.4 < share(WRONG, 1) < 0.7
