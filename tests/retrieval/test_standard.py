"""Protocols from Python are those of the configuration."""

import polars as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from clip3dreid.config.folder import conf_dir
from clip3dreid.retrieval.standard import CLOTHES, GENERAL, fitting


def test_the_standard_protocols_are_those_of_the_configuration() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(overrides=[f"+protocol@protocols=[{','.join(CLOTHES.protocols)}]"])
    assert {name: instantiate(node) for name, node in cfg.protocols.items()} == dict(CLOTHES.protocols)
    assert GENERAL.protocols["general"] is CLOTHES.protocols["general"]
    assert CLOTHES.headline in CLOTHES.protocols


def test_outfits_are_asked_for_where_every_row_has_one() -> None:
    labelled, unlabelled = pl.DataFrame({"clothes": ["a"]}), pl.DataFrame({"clothes": ["a", None]})
    assert fitting(labelled, labelled) is CLOTHES
    assert fitting(labelled, unlabelled) is GENERAL
    assert fitting(labelled, pl.DataFrame({"person": ["a"]})) is GENERAL
