"""`clip3dreid weights`: what students start from, what a recipe needs, whether it is there; conversion."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.needs import print_needs, print_published, print_students
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError


def _convert(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise InputError("out is not set; give the file to write as out=NAME.safetensors")
    # Here, so that a listing needs no torch.
    from clip3dreid.model.conversion import convert

    done = convert(
        Path(cfg.convert).expanduser(),
        Path(cfg.out).expanduser(),
        objects.plain(cfg.model.student),
        height=int(cfg.height),
        width=int(cfg.width),
        trusted=trusted(cfg),
    )
    use = "ready to evaluate" if done.complete else "a backbone: training can start from it"
    print(f"{done.out}: {done.tensors} tensors, {use}")  # noqa: T201


@entry_point("weights")
def main(cfg: DictConfig) -> None:
    """Convert where `convert` is set; say what a recipe needs where there is one; list all models otherwise."""
    if cfg.convert is not None:
        _convert(cfg)
    elif objects.no_data(cfg):
        # Last what is asked for most: a terminal shows the end.
        print_published()
        print_students(str(cfg.weights_dir))
    else:
        print_needs(cfg, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
