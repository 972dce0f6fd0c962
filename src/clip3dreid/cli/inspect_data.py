"""`clip3dreid inspect_data`: what a data set on disk holds, and what each protocol makes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clip3dreid.config.hydra import entry_point
from clip3dreid.data.inspection import inspect
from clip3dreid.data.manifest import Manifest, save
from clip3dreid.data.same_pictures import mark_same_pictures
from clip3dreid.data.selection import hold_out
from clip3dreid.errors import InputError
from clip3dreid.guidance.sources import instantiate_protocols, read_manifest, require_data
from clip3dreid.io.files import write_json
from clip3dreid.report.tables import print_table
from clip3dreid.retrieval.evaluation import count
from clip3dreid.retrieval.protocol import Protocol

log = logging.getLogger(__name__)


def protocol_report(manifest: Manifest, split: str, protocols: dict[str, Protocol]) -> list[dict[str, Any]]:
    """For each protocol on a split: valid queries, and what share of the gallery is junk; misfits are logged."""
    query, gallery = manifest.part(split, "query"), manifest.part(split, "gallery")
    if not (len(query) and len(gallery)):
        return []
    query, gallery, *_ = mark_same_pictures(manifest.root, query, gallery)
    reports = []
    for name, protocol in protocols.items():
        report = {
            "split": split,
            "protocol": name,
            "description": protocol.description,
            "same_picture": protocol.same_picture,
        }
        try:
            reports.append(report | count(protocol, query, gallery)._asdict())
        except InputError as error:
            log.warning("%s", error)
    return reports


def print_protocols(reports: list[dict[str, Any]]) -> None:
    """Prints a table of what each protocol makes of the data, and what each protocol is."""
    if not reports:
        return
    header = ["split", "protocol", "queries", "valid", "in gallery", "gallery"]
    header += ["positives a query", "junk a query", "junk, % of gallery", "chance R1, %"]
    rows = [
        [
            *(
                report[key]
                for key in ("split", "protocol", "queries", "valid_queries", "queries_in_gallery", "gallery")
            ),
            *(report[key] for key in ("positives_per_query", "junk_per_query")),
            *(100 * report[key] for key in ("junk_share", "chance_r1")),
        ]
        for report in reports
    ]
    print_table("Protocols", header, rows)
    told = {report["protocol"]: report for report in reports}
    print_table("", ["protocol", "what it does"], [[name, r["description"]] for name, r in told.items()])
    for report in reports:
        if some := report["queries_in_gallery"]:
            log.warning(
                "%s, %s: %d of %d queries are in the gallery themselves, by path or bytes (same_picture=%s): %s",
                *(report["split"], report["protocol"], some, report["queries"], report["same_picture"]),
                ", ".join(report["in_gallery"]) + (", …" if some > len(report["in_gallery"]) else ""),
            )
        if names := ", ".join(report["without_positive"]):
            count = report["queries"] - report["valid_queries"]
            log.info(
                "%s, %s: %d queries without a positive: %s", report["split"], report["protocol"], count, names
            )


@entry_point("inspect_data")
def main(cfg: DictConfig) -> None:
    """Prints the report; differences to published counts are shown, and are no error."""
    require_data(cfg)
    manifest = hold_out(read_manifest(cfg.data), int(cfg.data.val_people), int(cfg.seed))
    report = inspect(manifest, decode=bool(cfg.decode), workers=int(cfg.workers))
    for title, header, rows in report.tables():
        print_table(title, header, rows)
    chosen = instantiate_protocols(cfg.protocol)
    test = chosen or instantiate_protocols(cfg.data.protocols)
    val = chosen or instantiate_protocols(cfg.data.val_protocols)
    protocols = protocol_report(manifest, "test", test) + protocol_report(manifest, "val", val)
    print_protocols(protocols)
    if cfg.manifest is not None:
        save(manifest, Path(cfg.manifest))
        log.info("manifest written to %s", cfg.manifest)
    if cfg.out is not None:
        write_json(Path(cfg.out), report.to_dict() | {"protocols": protocols})


if __name__ == "__main__":
    main()
