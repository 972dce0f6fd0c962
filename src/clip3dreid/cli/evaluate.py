"""`clip3dreid evaluate`: a checkpoint on any data set, or features from any model."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clip3dreid.config.evaluation import check_request, evaluated
from clip3dreid.config.hydra import entry_point
from clip3dreid.io.launch import launch


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate, print a table for each data set, write `out` and `per_query`."""
    check_request(cfg)
    first = launch().first
    scored = evaluated(cfg)
    if not first:
        return
    from clip3dreid.report.results import write_scores
    from clip3dreid.report.tables import print_scores, save_tables

    about = f"{cfg.features}, {cfg.metric}" if cfg.features is not None else scored.model
    for name, feature, scores, queries in scored.by_feature():
        by = f", by {feature}" if scored.alone else ""
        print_scores(f"{name} ({cfg.split}), {about}{by}" if name else about, scores, scored.notes[name])
        if cfg.per_query is not None:
            folder, before = Path(str(cfg.per_query)), f"{name}_" if name else ""
            before = before if feature == scored.feature else f"embedding_{before}"
            save_tables({folder / f"{before}{key}.parquet": table for key, table in queries.items()})
    if cfg.out is not None:
        write_scores(Path(str(cfg.out)), scored.to_dict())


if __name__ == "__main__":
    main()
