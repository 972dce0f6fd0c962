"""`clip3dreid doctor`: what is installed, which devices there are, which weights and data are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point
from clip3dreid.errors import InputError


def findings(weights_dir: str, data_dir: Path, bodies: Path) -> dict[str, Any]:
    """Return everything that doctor says, as plain data.

    Args:
        weights_dir: where published weights are looked for.
        data_dir: a folder whose folders may be data sets.
        bodies: a folder of textureless bodies.
    """
    from clip3dreid.config.published import body_files, student_weights, teacher_weights
    from clip3dreid.io import diagnosis

    places = {"here": Path(), "weights_dir": Path(weights_dir).expanduser(), "data_dir": data_dir}
    folders = sorted(path.name for path in data_dir.iterdir() if path.is_dir()) if data_dir.is_dir() else []
    return {
        "system": diagnosis.system(),
        "packages": [{**one._asdict(), "state": one.state} for one in diagnosis.packages()],
        "broken": diagnosis.broken(),
        "devices": [one._asdict() for one in diagnosis.devices()],
        "weights": [
            {"group": group, "name": one.name, "place": one.place, "there": one.there, "fetch": one.fetch}
            for group, listed in (
                ("model/student", student_weights(weights_dir)),
                ("model/teacher", teacher_weights(weights_dir)),
            )
            for one in listed
        ],
        "bodies": [{**one._asdict(), "state": one.state} for one in body_files()],
        "textureless_bodies": {"place": str(bodies), "there": (bodies / "truth.parquet").is_file()},
        "data": {"place": str(data_dir), "there": data_dir.is_dir(), "folders": folders},
        "free_gigabytes": {name: diagnosis.free_gigabytes(place) for name, place in places.items()},
    }


@entry_point("doctor")
def main(cfg: DictConfig) -> None:
    """Look, print, write `out`, and end with status 2 where something needed is missing or broken."""
    from clip3dreid.report.findings import print_findings, troubles

    found = findings(
        str(cfg.weights_dir), Path(str(cfg.data_dir)).expanduser(), Path(str(cfg.bodies)).expanduser()
    )
    print_findings(found)
    if cfg.out is not None:
        from clip3dreid.io.files import write_json

        write_json(Path(str(cfg.out)).expanduser(), {"version": 1, **found})
    if wrong := troubles(found):
        raise InputError("; ".join(wrong))


if __name__ == "__main__":
    main()
