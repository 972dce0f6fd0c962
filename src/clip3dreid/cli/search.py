"""`clip3dreid search`: people in extracted shards, by picture, by several pictures, or by words."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.trust import trusted
from clip3dreid.errors import InputError
from clip3dreid.search.settings import SearchSettings
from clip3dreid.search.shard_index import read_shard_index


@entry_point("search")
def main(cfg: DictConfig) -> None:
    """Search, print what was found, and write it where that is asked for."""
    settings = objects.settings(SearchSettings, cfg)
    gallery, out, sheet = (objects.path(cfg, key) for key in ("gallery", "out", "sheet"))
    if gallery is None:
        raise InputError("where to look? Give gallery=FOLDER, which clip3dreid extract has filled")
    queries = objects.queries(cfg)
    if queries is None and (out is not None or sheet is not None):
        raise InputError("out and sheet are of one search; leave them out with interactive=true")
    index = read_shard_index(gallery)
    if cfg.checkpoint is None:
        raise InputError(f"checkpoint is not set; give the model that made {gallery}: {index['model']}")
    # Imported here, so that --help, a mistyped key and a folder without shards are answered before torch is loaded.
    from clip3dreid.inference.model import load
    from clip3dreid.io.devices import chosen_device
    from clip3dreid.io.files import write_json
    from clip3dreid.report.search_sheet import check_sheet
    from clip3dreid.report.tables import print_hits
    from clip3dreid.search.engine import holds_labels
    from clip3dreid.search.search import Searcher
    from clip3dreid.search.session import answer_input
    from clip3dreid.search.shards import Shards

    if sheet is not None:
        check_sheet(sheet)
    engine, teacher = objects.engine(cfg), objects.teacher_factory(cfg)
    shards = Shards(gallery, lazy=holds_labels(engine))
    device, about = chosen_device(str(cfg.device)), objects.network(cfg)
    model = load(objects.checkpoint(cfg), trusted=trusted(cfg), network=about, device=device)
    searcher = Searcher(shards, model, engine=engine, teacher=teacher)
    if queries is None:
        answer_input(searcher, settings)
        return
    result = searcher.search(queries, settings)
    if out is not None:
        write_json(out, result.as_json())
    if sheet is not None:
        result.draw(sheet)
    for query, hits in result.answers:
        print_hits(query.name, result.score, hits, [word for _, word in query.understood])


if __name__ == "__main__":
    main()
