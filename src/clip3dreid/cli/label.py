"""`clip3dreid label`: the teacher says of every training person how the body is shaped."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point


@entry_point("label")
def main(cfg: DictConfig) -> None:
    """Labels, and says where the labels are."""
    # Here and not above, so that torch is loaded after `entry_point` has said how its threads wait.
    from clip3dreid.guidance.labelling import label

    label(cfg)


if __name__ == "__main__":
    main()
