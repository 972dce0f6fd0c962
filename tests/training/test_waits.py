"""No step of a training waits for its device, on a pretend accelerator."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.pretend_accelerator import Report, answer_of, run_on_it
from tests.tiny_training import METHODS

STEPS = 4
# In a process of its own, all of them: a device once registered stays.
TRAININGS = f"""
import json, pytest
from tests import pretend_accelerator as device
device.register()
device.patch_trainer("bf16-mixed")
from tests.tiny_training import METHODS, tiny_trainer, tiny_training
reports = {{}}
for method in METHODS:
    device.COUNTS.report = device.Report()
    module, data = tiny_training(method, {STEPS})
    tiny_trainer().fit(module, datamodule=data)
    reports[method] = vars(device.COUNTS.report)
device.COUNTS.report = device.Report()
from tests.training.test_waits_cuda import stops_at_the_third
with pytest.MonkeyPatch.context() as patch:
    stops_at_the_third(patch)
patch = pytest.MonkeyPatch()
from clip3dreid.loss.identity import CrossEntropy
forward = CrossEntropy.forward
patch.setattr(CrossEntropy, "forward", lambda *them: forward(*them) + 0 * float(them[1].embedding.sum()))
device.COUNTS.report = device.Report()
module, data = tiny_training("ce", {STEPS})
tiny_trainer().fit(module, datamodule=data)
reports["reads"] = vars(device.COUNTS.report)
print(json.dumps(reports))
"""


def test_no_step_after_the_first_waits_for_the_device_and_one_that_reads_a_value_is_found_out(
    tmp_path: Path,
) -> None:
    # One test of all methods: on two workers a fixture would train them twice.
    found: dict[str, Any] = answer_of(["-c", TRAININGS], tmp_path)
    reports = {method: Report(**report) for method, report in found.items()}
    for method in METHODS:
        report = reports[method]
        assert len(report.steps) == STEPS, method
        assert report.waits() == {}, method
        assert report.mixed == [], method
    waits = reports["reads"].waits()
    assert list(waits) == list(range(2, STEPS + 1))
    assert all("item" in line for lines in waits.values() for line in lines)


@pytest.mark.slow
def test_training_evaluation_and_extraction_never_mix_devices_and_batches_are_not_waited_for(
    ltcc_root: Path, tmp_path: Path
) -> None:
    data = ["data=ltcc", f"data.root={ltcc_root}"]
    method = [
        "method=clip3dreid_cal",
        "clothes_start_epoch=1",
        "model/teacher=body_clip",
        "model.teacher.cache=disk",
    ]
    train, evaluate, extract = run_on_it(
        ["train", *data, *TINY, *method, "epochs=2", "hydra.run.dir=run"],
        ["evaluate", "checkpoint=run", *data, "datamodule.workers=0"],
        ["extract", "checkpoint=run", *data, "out=shards", "workers=0", "batch=8", "outputs=all"],
        folder=tmp_path,
    )
    assert train.mixed == evaluate.mixed == extract.mixed == []
    # Scores are float64 wherever a device has that; a step makes nothing of it.
    assert [line for line in train.double if not line.startswith("retrieval/")] == []
    # The teacher's embeddings come with the batch; the clothes' loss joins in the second epoch.
    assert len(train.steps) > 8
    assert train.waits() == {}
    # The last batch of the shard waits for all that is on its way.
    assert len(extract.batches) > 4
    assert list(extract.waits("batches")) == [len(extract.batches)]
    assert sum(extract.waits("batches")[len(extract.batches)].values()) == 1
