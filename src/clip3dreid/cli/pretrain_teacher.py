"""`clip3dreid pretrain_teacher`: a small CLIP from rendered people and sentences about their shape."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.hydra import entry_point
from clip3dreid.config.run_folder import holds_checkpoint
from clip3dreid.errors import InputError
from clip3dreid.io.files import inside, write_json, write_text
from clip3dreid.io.formats import damaged, read_yaml
from clip3dreid.io.run_folder import LAST_CHECKPOINT

log = logging.getLogger(__name__)

CARD_VERSION = 1
_FILES = ("config.yaml", "environment.json")
# What may differ when a killed run goes on.
_HANDLING = ("workers", "in_memory", "trainer", "logger", "callbacks")


def _decides(cfg: DictConfig) -> dict[str, Any]:
    from clip3dreid.guidance.sources import plain

    return {key: value for key, value in plain(cfg).items() if key not in _HANDLING}


def _check_folder(cfg: DictConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from, if this very training was started there before.

    Raises:
        InputError: if the folder holds another training.
    """
    for name in (*_FILES, LAST_CHECKPOINT, Path("csv") / "metrics.csv"):
        inside(folder, name)
    record = folder / "config.yaml"
    if not record.is_file():
        return None
    again = "give another out"
    earlier = read_yaml(record, "the config of a training", again)
    if not isinstance(earlier, dict):
        raise damaged(record, "it holds a list", again)
    earlier = {key: value for key, value in earlier.items() if key not in _HANDLING}
    if earlier != _decides(cfg):
        changed = sorted(
            key for key in {**earlier, **_decides(cfg)} if earlier.get(key) != _decides(cfg).get(key)
        )
        raise InputError(f"{folder} holds a training with another {', '.join(changed)}; give another out")
    if not holds_checkpoint(folder):
        return None
    from clip3dreid.training.checkpoints import newest_whole

    at = newest_whole(folder)
    log.info("going on after %d epochs and %d batches, from %s", at.epochs, at.batches, at.path)
    return at.path


def _world(folder: Path) -> dict[str, Any]:
    """What tells a rendered world from others, wherever it lies.

    Raises:
        InputError: if the folder does not say.
    """
    from clip3dreid.synthetic.folder import world_facts

    facts = world_facts(folder)
    return {key: facts[key] for key in ("fingerprint", "counts")} | {"seed": facts["config"]["seed"]}


def train(cfg: DictConfig) -> Path:
    """Trains, or goes on training, and writes the teacher's folder.

    Args:
        cfg: `conf/pretrain_teacher.yaml`, composed.

    Returns:
        The teacher's folder, `out/teacher`.

    Raises:
        InputError: if world, grammar or network do not fit, or `out` holds something else or is in use.
    """
    # Imported here, so that --help and a mistyped key are answered before torch is loaded.
    import lightning.pytorch as pl
    from hydra.utils import instantiate
    from lightning.pytorch.utilities import rank_zero_only
    from rich.progress import Progress

    from clip3dreid.guidance.sources import plain
    from clip3dreid.io.environment import environment, keep_earlier
    from clip3dreid.model.small_clip import (
        check_place,
        make_small_clip,
        parameters,
        save_small_clip,
        train_tokenizer,
    )
    from clip3dreid.training.checkpoints import CheckpointFiles
    from clip3dreid.training.signals import SaveWhenTold, StopWatch
    from clip3dreid.training.teacher import TeachingData, TeachingModule, read_crowd, tokenizer_texts

    folder = Path(str(cfg.out))
    _check_folder(cfg, folder)
    # Now, and not after the training.
    out = folder / "teacher"
    check_place(out)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    vocabulary = instantiate(cfg.language, _convert_="all")
    sentences = instantiate(cfg.sentences, vocabulary=vocabulary, _convert_="all")
    worlds = [cfg.worlds] if isinstance(cfg.worlds, str) else list(cfg.worlds)
    crowd = read_crowd([Path(str(world)) for world in worlds], list(vocabulary.groups))
    taught = {"worlds": [_world(Path(str(world))) for world in worlds], "pictures": len(crowd.files)}
    texts = tokenizer_texts(crowd.words, sentences, int(cfg.seed))
    tokenizer = train_tokenizer(texts, int(cfg.vocabulary_size), int(cfg.context))
    data = TeachingData(
        crowd,
        sentences,
        tokenizer,
        train_view=instantiate(cfg.train_view),
        batch=int(cfg.batch),
        sentences_per_picture=int(cfg.sentences_per_picture),
        workers=int(cfg.workers),
        in_memory=bool(cfg.in_memory),
        seed=int(cfg.seed),
    )
    module = TeachingModule(
        make_small_clip(tokenizer, plain(cfg.clip)),
        [len(words) for words in vocabulary.groups.values()],
        naming_epochs=int(cfg.naming_epochs),
        naming_weight=float(cfg.naming_weight),
        mean=list(cfg.mean),
        std=list(cfg.std),
        optimizer=instantiate(cfg.optimizer.optimizer),
        schedule=instantiate(cfg.optimizer.schedule),
    )
    log.info("%d pictures, %s weights", len(crowd.files), f"{parameters(module.model):,}")
    with Progress(transient=True) as bar:
        task = bar.add_task("decoding pictures", total=len(crowd.files))
        data.setup("fit", lambda done: bar.update(task, completed=done))
    watch = StopWatch(folder, f"the same command (out={folder})")
    callbacks = [instantiate(node) for name, node in cfg.callbacks.items() if name != "best"]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=[SaveWhenTold(watch), *callbacks],
        logger=[instantiate(node) for node in cfg.logger.values()],
        reload_dataloaders_every_n_epochs=1,
        plugins=[CheckpointFiles()],
    )
    watch.take_over(trainer)
    start = _check_folder(cfg, folder)
    if trainer.is_global_zero:
        check_place(out)
        keep_earlier(folder)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_json(folder / "environment.json", environment())
    begun = time.perf_counter()
    with watch.reporting():
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    card = {
        "version": CARD_VERSION,
        "trained_on": taught,
        "seed": int(cfg.seed),
        "epochs": int(cfg.epochs),
        "seconds": round(time.perf_counter() - begun),
        "weights": parameters(module.model),
        "vocabulary": vocabulary.digest,
        "view": {"height": data.train_view.height, "width": data.train_view.width},
    }
    rank_zero_only(save_small_clip)(out, module.model, tokenizer, list(cfg.mean), list(cfg.std), card)
    log.info("the teacher is in %s; use it with model/teacher=body_clip model.teacher.path=%s", out, out)
    return out


@entry_point("pretrain_teacher")
def main(cfg: DictConfig) -> None:
    """Trains and says where the teacher lies."""
    train(cfg)


if __name__ == "__main__":
    main()
