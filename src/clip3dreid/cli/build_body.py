"""`clip3dreid build_body`: makes the free body's files anew."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point
from clip3dreid.errors import InputError
from clip3dreid.io.files import write_json
from clip3dreid.report.tables import print_table

log = logging.getLogger(__name__)


@entry_point("build_body")
def main(cfg: DictConfig) -> None:
    """Builds, then prints how well ten coefficients tell bodies that were not fitted."""
    from clip3dreid.body.free_body import COMPONENTS, build

    if cfg.bodies < 2 * COMPONENTS or cfg.held_out < 2:
        raise InputError(f"bodies={cfg.bodies} held_out={cfg.held_out}: give at least {2 * COMPONENTS} and 2")
    out = Path(cfg.out)
    report = build(int(cfg.bodies), int(cfg.held_out), int(cfg.seed), out)
    print_table(
        "Share of the variance",
        ["component", "%"],
        [["stature" if i == 0 else str(i), 100 * share] for i, share in enumerate(report["variance"])],
    )
    print_table(
        "Phenotypes as linear functions of the coefficients, on bodies held out",
        ["phenotype", "R2, %"],
        [[name, 100 * r2] for name, r2 in report["phenotype_r2"].items()],
    )
    print_table(
        "Error on bodies held out, mm",
        ["file", "vertices", "faces", "kB", "mean", "95 %", "largest", "joints, mean"],
        [
            [
                name,
                file["vertices"],
                file["faces"],
                file["bytes"] // 1000,
                *(file["vertex_error_mm"][key] for key in ("mean", "p95", "max")),
                file["joint_error_mm"],
            ]
            for name, file in report["files"].items()
        ],
    )
    write_json(out / "report.json", report)
    log.info("wrote %s", ", ".join(str(out / f"{name}.npz") for name in report["files"]))


if __name__ == "__main__":
    main()
