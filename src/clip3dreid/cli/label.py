"""`clip3dreid label`: the teacher says of every training person how the body is shaped."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.guidance.settings import LabelRun, TeacherUse

log = logging.getLogger(__name__)


@entry_point("label")
def main(cfg: DictConfig) -> None:
    """Label, and say where the labels are."""
    objects.require_data(cfg)
    node = objects.teacher_node(cfg, "no teacher")
    use, settings = objects.settings(TeacherUse, node), objects.settings(LabelRun, cfg)

    # Here and not above, so that torch is loaded after `entry_point` has said how its threads wait.
    from clip3dreid.guidance.labelling import label
    from clip3dreid.report.label_page import print_agreement

    made = label(objects.data_specs(cfg), objects.teacher(cfg), objects.vocabulary(cfg), use, settings)
    if made.agreement is not None:
        print_agreement(made.agreement)
    log.info("%d people labelled by %s: %s", made.units, made.labels.teacher, made.path)
    page = made.path.parent / "labels.md"
    log.info("read %s, look at words.png, scores.png, certain.jpg and uncertain.jpg", page)


if __name__ == "__main__":
    main()
