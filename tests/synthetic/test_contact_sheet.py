from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from clip3dreid.errors import InputError
from clip3dreid.synthetic.contact_sheet import GAP, contact_sheet


def world(root: Path, people: int = 3, outfits: int = 2, pictures: int = 4) -> Path:
    """Every picture is of one grey: person, outfit and picture can be read off it."""
    rows = []
    for person in range(people):
        for outfit in range(outfits):
            for picture in range(pictures):
                path = f"{person}_{outfit}_{picture}.png"
                Image.new("RGB", (10, 20), (60 * person, 100 * outfit, 50 * picture)).save(root / path)
                rows.append(
                    {
                        "path": path,
                        "split": "train",
                        "person_index": person,
                        "outfit_index": outfit,
                        "bad_box": False,
                    }
                )
    rows[0]["bad_box"] = True
    pl.DataFrame(rows).write_parquet(root / "truth.parquet")
    return root


def test_a_row_for_each_person_and_their_outfits_side_by_side(tmp_path: Path) -> None:
    contact_sheet(world(tmp_path), tmp_path / "sheet.png", people=2, height=20, columns=4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 10 + GAP, 2 * 20 + GAP)
        assert sheet.getpixel((5, 10))[:2] == (0, 0)
        assert sheet.getpixel((5 + 20 + GAP, 10))[:2] == (0, 100)
        assert sheet.getpixel((5, 30 + GAP))[:2] == (60, 0)
        # Two of an outfit's pictures, from its whole length; the bad box is not shown.
        assert sheet.getpixel((5, 10))[2] == 50
        assert sheet.getpixel((15, 10))[2] > 50


def test_a_folder_without_truth_and_an_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no truth"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")
    with pytest.raises(InputError, match="no people in split test"):
        contact_sheet(world(tmp_path), tmp_path / "sheet.png", split="test")
    assert not (tmp_path / "sheet.png").exists()


def test_a_damaged_truth_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "truth.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match=r"truth\.parquet cannot be read as the truth about a world .*; write the world anew"
    ):
        contact_sheet(tmp_path, tmp_path / "sheet.jpg")
    pl.DataFrame({"path": ["a"]}).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(InputError, match="has no column split, bad_box, person_index, outfit_index"):
        contact_sheet(tmp_path, tmp_path / "sheet.jpg")
