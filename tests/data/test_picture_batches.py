"""Batches are whole, the same in every worker, and name what cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clip3dreid.data.images import FileRows, TestView, TrainView
from clip3dreid.data.picture_batches import EvaluationPictures, TrainPictures, as_it_is
from clip3dreid.io.pictures import UnreadablePicture, read_rgb
from tests.random_pictures import smooth


@pytest.fixture
def files(tmp_path):
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"bild_ä_{i}.png")
        Image.fromarray(smooth(40 + i, 20)).save(paths[-1])
    return paths


def train_pictures(files, **changes):
    rows = np.arange(len(files))
    labels = np.stack([rows // 4, rows // 2, rows % 3 - 1], 1)
    return TrainPictures(FileRows(files), labels, TrainView(48, 24, **changes))


def test_workers_do_not_change_a_batch(files):
    plan = [
        [(row, 1000 * batch + row) for row in order] for batch, order in enumerate(([0, 5, 7], [7, 5, 11]))
    ]
    pictures = train_pictures(files, keep_view=True)
    batches = {
        workers: list(DataLoader(pictures, batch_sampler=plan, collate_fn=as_it_is, num_workers=workers))
        for workers in (0, 2)
    }
    for one, two in zip(batches[0], batches[2], strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    # Row 7 was drawn with two seeds.
    assert not torch.equal(batches[0][0].images[2], batches[0][1].images[0])


def test_training_batch_carries_bytes_labels_and_rows(files):
    pictures = train_pictures(files)
    batch = pictures.__getitems__([(row, 1) for row in (9, 0)])
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (2, 3, 48, 24)
    assert batch.view is None
    labels = [batch.person, batch.clothes, batch.camera, batch.row]
    assert [label.tolist() for label in labels] == [[2, 0], [4, 0], [-1, -1], [9, 0]]
    assert {label.dtype for label in labels} == {torch.int64}
    assert len(pictures) == 12


def test_evaluation_batch_carries_rows_and_no_labels(files):
    loader = DataLoader(
        EvaluationPictures(FileRows(files), len(files), TestView(48, 24)), batch_size=5, collate_fn=as_it_is
    )
    batches = list(loader)
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(12))
    assert {int(label) for batch in batches for label in (*batch.person, *batch.clothes, *batch.camera)} == {
        -1
    }
    np.testing.assert_array_equal(batches[1].images[1], TestView(48, 24)(read_rgb(files[6])))


def test_unreadable_picture_is_named_across_a_workers_border(files):
    files[3].write_bytes(b"broken")
    loader = DataLoader(train_pictures(files), batch_sampler=[[(3, 0)]], collate_fn=as_it_is, num_workers=1)
    with pytest.raises(UnreadablePicture) as caught:
        list(loader)
    line = str(caught.value).strip().splitlines()[-1]
    assert files[3].name in line
    assert line.endswith("leave it out with data.on_error=skip")
