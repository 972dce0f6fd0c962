"""`clip3dreid export`: a trained model as files that run without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clip3dreid.config.hydra import at_least, entry_point
from clip3dreid.errors import InputError


def export(cfg: DictConfig) -> dict[str, Any]:
    """Writes the files.

    Args:
        cfg: `conf/export.yaml`, composed.

    Returns:
        What `export.json` says.

    Raises:
        InputError: if the model cannot be read, or a setting, a package or the place to write is not usable.
    """
    from hydra.utils import instantiate

    from clip3dreid.export import parity as exporting
    from clip3dreid.inference.model import load
    from clip3dreid.io.environment import environment

    out = Path(str(cfg.out)).expanduser()
    settings = exporting.Settings(
        outputs=_names(cfg.outputs),
        flip=cfg.flip,
        unit_length=cfg.unit_length,
        normalise=cfg.normalise,
        input=cfg.input,
    )
    timing, threads = at_least(cfg, "timing", 0), int(at_least(cfg, "threads", 1))
    chosen = _names(cfg.format)
    if unknown := [name for name in chosen if name not in cfg.formats]:
        raise InputError(f"format={unknown[0]} is unknown; choose from {', '.join(map(str, cfg.formats))}")
    formats = {name: instantiate(cfg.formats[name]) for name in chosen}
    pictures = None if cfg.pictures is None else Path(str(cfg.pictures)).expanduser()
    if pictures is not None and not pictures.is_dir():
        raise InputError(f"pictures={pictures} is no folder; give one of person crops, or leave it out")
    return exporting.export(
        load(str(cfg.checkpoint)),
        settings,
        formats,
        out,
        pictures=pictures,
        timing=timing,
        threads=threads,
        facts={"checkpoint": str(cfg.checkpoint), "environment": environment()},
    )


def _names(value: Any) -> tuple[str, ...]:
    """A list of names, or a single one."""
    return (value,) if isinstance(value, str) else tuple(map(str, value or ()))


def _print(report: dict[str, Any]) -> None:
    from clip3dreid.report.tables import print_table

    speeds = report["milliseconds_per_picture"] or {}
    header = ["", "MB", "opset", "1 - cosine", "difference", *(f"ms at {size}" for size in speeds)]
    rows = [["torch", *[""] * 4, *(f"{times['torch']:.2f}" for times in speeds.values())]] if speeds else []
    for name, file in report["files"].items():
        facts = [f"{file['megabytes']:.1f}", str(file.get("opset", ""))]
        parity = [f"{1 - file['cosine']:.1e}", f"{file['difference']:.1e}"]
        times = [f"{times[name]:.2f}" for times in speeds.values()]
        rows.append([file["file"], *facts, *parity, *times])
    title = f"{report['checkpoint']}: {report['parameters'] / 1e6:.2f} M parameters"
    print_table(title, header, rows)
    compared = next(iter(report["files"].values()))["pictures"]
    print(f"  worst of {compared} pictures, model against file")  # noqa: T201
    if speeds:
        print(f"  milliseconds a picture, by pictures in a batch, {report['threads']} thread(s)")  # noqa: T201


@entry_point("export")
def main(cfg: DictConfig) -> None:
    """Exports, and prints what the files are and how close to the model they come."""
    _print(export(cfg))


if __name__ == "__main__":
    main()
