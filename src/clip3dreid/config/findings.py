"""Look for everything that `clip3dreid doctor` tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip3dreid.config.published import body_files, student_weights, teacher_weights
from clip3dreid.io import diagnosis


def findings(weights_dir: str, data_dir: Path, bodies: Path) -> dict[str, Any]:
    """Return everything that doctor says, as plain data.

    Args:
        weights_dir: where published weights are looked for.
        data_dir: a folder whose folders may be data sets.
        bodies: a folder of textureless bodies.
    """
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
