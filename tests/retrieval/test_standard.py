"""Protocols from Python are those of the configuration."""

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from clip3dreid.config.folder import conf_dir
from clip3dreid.retrieval.standard import CLOTHES, GENERAL


def test_the_standard_protocols_are_those_of_the_configuration() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(overrides=[f"+protocol@protocols=[{','.join(CLOTHES.protocols)}]"])
    assert {name: instantiate(node) for name, node in cfg.protocols.items()} == dict(CLOTHES.protocols)
    assert GENERAL.protocols["general"] is CLOTHES.protocols["general"]
    assert CLOTHES.headline in CLOTHES.protocols
