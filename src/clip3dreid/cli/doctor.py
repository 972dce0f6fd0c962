"""`clip3dreid doctor`: what is installed, which devices there are, which weights and data are found."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point
from clip3dreid.errors import InputError


@entry_point("doctor")
def main(cfg: DictConfig) -> None:
    """Look, print, write `out`, and end with status 2 where something needed is missing or broken."""
    from clip3dreid.config.findings import findings
    from clip3dreid.report.findings import print_findings, troubles, write_findings

    found = findings(
        str(cfg.weights_dir), Path(str(cfg.data_dir)).expanduser(), Path(str(cfg.bodies)).expanduser()
    )
    print_findings(found)
    if cfg.out is not None:
        write_findings(Path(str(cfg.out)).expanduser(), found)
    if wrong := troubles(found):
        raise InputError("; ".join(wrong))


if __name__ == "__main__":
    main()
