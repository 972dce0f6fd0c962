"""`clip3dreid evaluate`: a checkpoint on any data set, or features from any model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.hydra import conf_dir, entry_point
from clip3dreid.errors import InputError
from clip3dreid.io.files import write_json

RESULTS_VERSION = 1


def _features(cfg: DictConfig) -> dict[str, Any]:
    from hydra.utils import instantiate

    from clip3dreid.guidance.sources import instantiate_protocols, plain
    from clip3dreid.report.tables import print_scores, save_tables
    from clip3dreid.retrieval.evaluation import evaluate, query_table
    from clip3dreid.retrieval.feature_file import equal_features, load_features

    query, asked, gallery, gallery_table = load_features(Path(cfg.features))
    nodes = cfg.protocol
    if not nodes:
        clothes = not (asked["clothes"].null_count() or gallery_table["clothes"].null_count())
        names = ("general", "same_clothes", "clothes_changing") if clothes else ("general",)
        nodes = OmegaConf.merge(*(OmegaConf.load(conf_dir() / "protocol" / f"{name}.yaml") for name in names))
    protocols = instantiate_protocols(nodes)
    rerank = instantiate(cfg.rerank)
    found = evaluate(
        query,
        asked,
        gallery,
        gallery_table,
        protocols,
        metric=cfg.metric,
        rerank=rerank,
        open_set=plain(cfg.open_set),
    )
    results = {name: evaluation.result() for name, evaluation in found.items()}
    if cfg.per_query is not None:
        save_tables(
            {
                Path(cfg.per_query) / f"{name}.parquet": query_table(evaluation.numbers(), asked)
                for name, evaluation in found.items()
            }
        )
    notes = []
    if equal := equal_features(query, asked, gallery, gallery_table):
        notes.append(
            f"{equal} of {len(query)} queries have the very features of a gallery item of their person: if these are "
            "the same pictures, say so with equal query_paths and gallery_paths, and they are dropped"
        )
    print_scores(f"{cfg.features}, {cfg.metric}", results, notes)
    return {"features": str(cfg.features), "metric": str(cfg.metric), "notes": notes, "results": results}


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluates, prints a table, writes `out`."""
    # Imported here, so that --help and a mistyped key are answered before torch is loaded, and features are
    # scored without a training framework.
    if cfg.features is not None:
        if cfg.checkpoint is not None or "data" in cfg or "model" in cfg:
            raise InputError(
                "features=FILE is evaluated alone; leave checkpoint, data and model out, or features"
            )
        facts = _features(cfg)
    else:
        from clip3dreid.training.evaluation import score

        facts = score(cfg)
    if cfg.out is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        from clip3dreid.io.environment import environment

        write_json(Path(cfg.out), {"version": RESULTS_VERSION, **facts, "environment": environment()})


if __name__ == "__main__":
    main()
