"""What a run of Weights & Biases left on this machine, read as its format is laid out, without its own reader."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32_768


def records(run: Path) -> Iterator[Any]:
    """The records of a run's transaction log: a LevelDB log with a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run.glob("run-*.wandb")
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < 7:  # too little for a header is filled up with zeros
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
    assert not parts


class OfflineRun:
    """A run that was kept on this machine.

    Args:
        folder: `wandb/offline-run-…`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: set[str] = set()
        self.curves: dict[str, list[Any]] = {}
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.about: Any = None
        for record in records(folder):
            kind = record.WhichOneof("record_type")
            self.kinds.add(kind)
            if kind == "run":
                self.about = record.run
            elif kind == "history":
                for item in record.history.item:
                    self.curves.setdefault(_key(item), []).append(json.loads(item.value_json))
            elif kind == "summary":
                self.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
            elif kind == "metric":
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "artifact":
                self.artifacts.append(record.artifact)

    def file(self, name: str) -> Path:
        """The file of a picture, table or body that was logged under a name."""
        (path,) = self.curves[f"{name}/path"]
        return self.folder / "files" / path

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table."""
        content = json.loads(self.file(name).read_text())
        return content["columns"], content["data"]


def _key(item: Any) -> str:
    return "/".join(item.nested_key) or item.key
