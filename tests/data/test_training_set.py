"""The training pictures of several data sets as one."""

from pathlib import Path

import pytest

from clip3dreid.data.datasets import ltcc
from clip3dreid.data.training_set import training_set
from clip3dreid.errors import InputError
from tests.conftest import write_ltcc


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sets")
    return [write_ltcc(folder / name, train=range(2), test=range(20, 21)) for name in ("one", "two")]


def test_rows_stand_one_set_behind_the_other_and_people_stay_apart(roots: list[Path]) -> None:
    manifests = [ltcc.read(root).renamed(root.name) for root in roots]
    pictures = training_set(manifests)
    assert len(pictures.table) == len(pictures.parts) == 32
    assert pictures.labels.people == ("one/0", "one/1", "two/0", "two/1")
    assert pictures.labels.person[:16].max() < 2 <= pictures.labels.person[16:].min()
    assert pictures.table["path"][16] == f"{roots[1].absolute()}/{pictures.parts['path'][16]}"
    assert pictures.joined.files(pictures.table)[16].is_file()
    pictures.check()


def test_data_sets_without_training_pictures_are_named_when_they_are_to_be_trained_on(
    roots: list[Path],
) -> None:
    manifest = ltcc.read(roots[0])
    empty = manifest.part("test")
    pictures = training_set([type(manifest)("ltcc", manifest.root, empty)])
    with pytest.raises(InputError, match=r"\['ltcc'\] hold no training pictures"):
        pictures.check()
