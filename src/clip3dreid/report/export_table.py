"""Print what came of an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip3dreid.report.tables import print_table


def print_export(model: str, report: Mapping[str, Any]) -> None:
    """Print the files of an export with their sizes, how close they are to the model, and how fast.

    Args:
        model: what was exported.
        report: as `export.json` has it.
    """
    speeds = report["milliseconds_per_picture"] or {}
    header = ["", "MB", "opset", "1 - cosine", "difference", *(f"ms at {size}" for size in speeds)]
    rows = [["torch", *[""] * 4, *(f"{times['torch']:.2f}" for times in speeds.values())]] if speeds else []
    for name, file in report["files"].items():
        facts = [f"{file['megabytes']:.1f}", str(file.get("opset", ""))]
        parity = [f"{1 - file['cosine']:.1e}", f"{file['difference']:.1e}"]
        times = [f"{times[name]:.2f}" for times in speeds.values()]
        rows.append([file["file"], *facts, *parity, *times])
    print_table(f"{model}: {report['parameters'] / 1e6:.2f} M parameters", header, rows)
    compared = next(iter(report["files"].values()))["pictures"]
    frames = (report["clips"] or {"frames": 1})["frames"]
    shown = "pictures" if frames == 1 else f"clips of {frames} frames"
    print(f"  worst of {compared} {shown}, model against file")  # noqa: T201
    if speeds:
        print(f"  milliseconds a picture, by {shown} in a batch, {report['threads']} thread(s)")  # noqa: T201
