"""Print what doctor found, in tables, and own the file that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from clip3dreid.io.checks import some
from clip3dreid.io.diagnosis import EXTRAS
from clip3dreid.io.files import write_json
from clip3dreid.report.tables import print_table

FINDINGS_VERSION = 1


def write_findings(path: Path, found: Mapping[str, Any]) -> None:
    """Write everything that doctor found, as JSON.

    Args:
        path: the file.
        found: plain data, as for `print_findings`.

    Raises:
        InputError: if it cannot be written.
    """
    write_json(path, {"version": FINDINGS_VERSION, **found})


def print_findings(found: Mapping[str, Any]) -> None:
    """Print what is installed, then devices, weights, bodies, data and room.

    Args:
        found: as `clip3dreid doctor out=FILE` writes it (`write_findings`).
    """
    system = found["system"]
    needed = [one for one in found["packages"] if one["extra"] is None]
    rows = [["Python", system["python"], "", system["platform"]]]
    rows += [[one["name"], one["installed"] or "-", one["wanted"], one["state"]] for one in needed]
    print_table("Installed", ["what", "version", "wanted", "state"], rows)
    print_table("Extras", ["extra", "for", "state", "to get it"], list(_extras(found["packages"])))
    memory = [["" if one["gigabytes"] is None else one["gigabytes"]] for one in found["devices"]]
    devices = [[one["name"], one["what"], *room] for one, room in zip(found["devices"], memory, strict=True)]
    print_table("Devices", ["device", "what", "GB"], devices)
    weights = [
        [f"{one['group']}={one['name']}", one["place"], "there" if one["there"] else "missing"]
        for one in found["weights"]
    ]
    print_table(
        "Weights, below weights_dir= or CLIP3DREID_WEIGHTS (more: clip3dreid weights)",
        ["chosen by", "place", "state"],
        weights,
    )
    bodies = [[f"body={one['name']}", one["place"] or "-", one["state"]] for one in found["bodies"]]
    textureless = found["textureless_bodies"]
    how = "there" if textureless["there"] else "missing; made by clip3dreid synthesize layout=bodies"
    bodies.append(["bodies.root= or CLIP3DREID_BODIES", textureless["place"], how])
    print_table("Bodies", ["chosen by", "place", "state"], bodies)
    print_table("Data", ["looked for", "place", "found"], [_data(found["data"])])
    print_table(
        "Free room", ["where", "GB"], [[name, room] for name, room in found["free_gigabytes"].items()]
    )


def troubles(found: Mapping[str, Any]) -> list[str]:
    """Return what keeps this project from working: packages it needs that are missing, too old, or do not load."""
    wrong = [
        f"{one['name']} {one['installed'] or 'is missing'}, {one['state']}".replace(", missing", "")
        for one in found["packages"]
        if one["state"] != "there" and (one["extra"] is None or one["installed"] is not None)
    ]
    return [*wrong, *found["broken"]]


def _extras(packages: list[dict[str, Any]]) -> Iterator[list[str]]:
    listed = sorted((one for one in packages if one["extra"]), key=lambda one: str(one["extra"]))
    for extra, members in groupby(listed, key=lambda one: str(one["extra"])):
        parts = list(members)
        lacking = [one["name"] for one in parts if one["state"] != "there"]
        state = f"without {', '.join(lacking)}" if lacking else "there"
        get = (
            "make install-smpl, or pip install smplx"
            if extra == "smpl"
            else f"pip install 'clip3dreid[{extra}]'"
        )
        yield [extra, EXTRAS[extra], state, get if lacking else ""]


def _data(data: Mapping[str, Any]) -> list[str]:
    names = some(data["folders"], 12) if data["folders"] else "nothing"
    looked = "data_dir= or CLIP3DREID_DATA (any folder will do: data.root=FOLDER)"
    return [looked, data["place"], names if data["there"] else "no such folder"]
