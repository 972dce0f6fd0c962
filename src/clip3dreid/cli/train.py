"""`clip3dreid train`: trains a student and evaluates it under every protocol of its data set."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clip3dreid.config.checklist import check_files
from clip3dreid.config.hydra import entry_point
from clip3dreid.config.objects import check_data_roots, require_data
from clip3dreid.config.resumed import in_order, resumed
from clip3dreid.config.run_folder import job_folder
from clip3dreid.io.launch import launch
from clip3dreid.io.lean import import_lightning
from clip3dreid.io.talk import talking

log = logging.getLogger(__name__)


@entry_point("train", lambda arguments: in_order(resumed(arguments)))
def main(cfg: DictConfig) -> float | None:
    """Train, print the scores, and return the headline's R1 for Hydra's sweepers that look for the best."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with talking(cfg.output), job_folder(folder):
        require_data(cfg)
        first = launch().first
        if first and cfg.resume is None:
            check_files(cfg, list(HydraConfig.get().overrides.task))
        if first:
            check_data_roots(cfg)
        # Light until here: what a config lacks is said before torch is loaded.
        import_lightning()
        from clip3dreid.config.training import train_arguments
        from clip3dreid.report.results import print_results
        from clip3dreid.training.run import train

        result = train(**train_arguments(cfg, folder))
        if first and result.results is not None:
            if cfg.output != "json":
                print_results(result.results)
            log.info("results, checkpoints and logs are in %s", folder)
        return result.headline


if __name__ == "__main__":
    main()
