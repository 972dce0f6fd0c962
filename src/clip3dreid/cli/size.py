"""`clip3dreid size`: what a training, an extraction and a search of a size take, and what breaks first."""

from __future__ import annotations

from omegaconf import DictConfig

from clip3dreid.config import objects
from clip3dreid.config.hydra import entry_point
from clip3dreid.report.sizing import SizeSettings, figures_of, size


@entry_point("size")
def main(cfg: DictConfig) -> None:
    """Print the estimates, what they come from, and what breaks at this size."""
    given: dict[str, int] = {}
    figures = figures_of(objects.plain(cfg.measured), objects.plain(cfg.own))
    settings = objects.settings(SizeSettings, cfg)
    if not objects.no_data(cfg):
        spec = objects.data_spec(cfg.data)
        # Here and not above, so that a mistyped key is answered before polars is loaded.
        from clip3dreid.data.sources import read_manifest

        train = read_manifest(spec).part("train")
        given = {"pictures": len(train), "people": train["person"].n_unique()}
        given = {key: value for key, value in given.items() if cfg[key] is None}
        settings = objects.settings(SizeSettings, cfg, **given)
    from clip3dreid.io.files import write_json
    from clip3dreid.report.tables import print_table

    found = size(settings, figures)
    many = (
        f"{settings.gallery:,} crops, {settings.columns:,} columns of {settings.dtype}, gpus={settings.gpus}"
    )
    print_table(many, *found.table())
    print_table("Figures", *found.sources())
    if found.limits:
        print_table("What breaks at this size (docs/scale.md)", ["what", "instead"], list(found.limits))
    if settings.out is not None:
        write_json(settings.out, found.to_dict())


if __name__ == "__main__":
    main()
