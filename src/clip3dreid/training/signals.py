"""Heed signals: a run that is told to end saves where it is, says how to go on, and ends in all of its processes.

Python runs a signal's handler in the main thread, between two of its own steps. A process that waits inside a
collective for another one never gets there, so signals are also heard by a thread, which tells the other processes
and ends this one when its time is up. Lightning's own handlers talk to the other processes from inside the handler,
where they wait for each other for ever if only one is told; they are taken out.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.distributed import distributed_c10d

from clip3dreid.errors import one_line
from clip3dreid.io.launch import FurtherProcesses, launch
from clip3dreid.io.launcher import start_by
from clip3dreid.io.run_folder import LAST_CHECKPOINT
from clip3dreid.training.checkpoints import files_of, save_at_once

log = logging.getLogger(__name__)

GRACE_S = 25.0
"""Seconds from a signal to the end, whatever the main thread is at: less than the 30 a scheduler commonly gives."""
LOST_S = 15.0
"""Seconds that a process goes on for without the first one: as long as all that end normally take to leave."""
_TICK_S = 0.25


class Stopped(SystemExit):
    """The end of a process that was told to stop, with the status that shells expect of the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopWatch:
    """Listen for signals while a run lasts.

    SIGTERM, SIGHUP and Ctrl-C (the first; the second one ends at once), and under SLURM SIGUSR1 and SIGUSR2, the
    usual requests for saving and requeueing. A SIGHUP that was ignored when the run began, as by `nohup`, still is.

    In training they end the run after the batch that is trained, with a checkpoint; in a validation after that, if it
    ends in time; elsewhere at once.

    Args:
        folder: of the run.
        command: that goes on with it, for messages.
        again: whether the same command, started again by a scheduler, goes on with it; that of a sweep does not.
        foreseen: whether an error is one that ends the command with status 2, as it then does all processes.

    Attributes:
        told: the signal that this or another process was told by; None: none.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        again: bool = True,
        foreseen: Callable[[BaseException], object] = one_line,
    ) -> None:
        self.folder, self.command, self.again = folder, command, again
        self.told: int | None = None
        self._foreseen = foreseen
        self._training = False
        self._handled = False
        self._parting = False
        self._rank = launch().rank
        self._store: Any = None
        self._saved = ""
        self._launcher: Any = None
        self._pid = os.getpid()
        self._closed = threading.Event()
        # Held by the thread while it works and by a fork: a child that is forked in the middle of another thread's
        # work can inherit a lock that nobody lets go of.
        self._quiet = threading.Lock()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers; in a thread that is not the main one Python has none, and this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        for signum in self._heeded():
            self._earlier[signum] = signal.signal(signum, self._handle)
        self._earlier_fd = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        _LISTENING.append(self)
        _hear_of_forks()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the handlers out; where the run ends by an error, the other processes are told."""
        if error is not None:
            # Those that it tells end with it, which is no news by then.
            self._parting = True
            self._part(error)
        if not self._earlier:
            return
        self._closed.set()
        self._thread.join()
        _LISTENING.remove(self)
        signal.set_wakeup_fd(self._earlier_fd)
        for signum, handler in self._earlier.items():
            signal.signal(signum, handler)
        os.close(self._ear)
        os.close(self._mouth)

    @staticmethod
    def _heeded() -> list[int]:
        found = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        if "SLURM_JOB_ID" in os.environ:
            found += [signal.SIGUSR1, signal.SIGUSR2]
        return [signum for signum in found if signal.getsignal(signum) is not signal.SIG_IGN]

    def quieten(self) -> None:
        """Wait until the thread rests, and keep it at rest, before this process is forked."""
        self._quiet.acquire()

    def resume(self) -> None:
        """Let the thread go on."""
        self._quiet.release()

    def deafen(self) -> None:
        """Keep what a forked worker is told from this process; called in the worker."""
        self._quiet.release()
        signal.set_wakeup_fd(-1)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a loader's worker; the process that started it decides
        # Not `told`: the listening thread may have heard of this very signal before.
        again, self._handled = self._handled, True
        self._tell(signum)
        if signum == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not self._training:
            raise Stopped(signum)

    def _tell(self, signum: int) -> None:
        if self.told is None:
            self.told = signum
            if self._training and self._rank == 0:
                log.warning("%s: stopping after this batch", signal.Signals(signum).name)

    def training_begins(self) -> None:
        """Have a signal wait for the end of a batch from here on."""
        self._training = True

    def training_ended(self) -> None:
        """Have a signal end the process at once from here on."""
        self._training = False

    def connect(self) -> None:
        """Begin to hear of the other processes; called as soon as they have met."""
        if self._store is None and dist.is_initialized() and dist.get_world_size() > 1:
            self._rank = dist.get_rank()
            # A connection of our own: the one that collectives are arranged by may be waiting.
            store: Any = distributed_c10d._get_default_store()
            self._store = distributed_c10d.PrefixStore("clip3dreid/stop", store.clone())

    def _listen(self) -> None:
        told_at = lost_at = None
        while not self._closed.is_set():
            heard = select.select([self._ear], [], [], _TICK_S)[0]
            with self._quiet:
                now = time.monotonic()
                for signum in os.read(self._ear, 64) if heard else b"":
                    if signum in self._earlier:
                        self._tell(signum)
                lost_at = self._exchanged(lost_at, now)
                self._look_after_children()
                if self.told is not None:
                    told_at = told_at or now
                    if now - told_at > GRACE_S and not self._closed.is_set():
                        self._leave(self._farewell(), 128 + self.told)

    def _exchanged(self, lost_at: float | None, now: float) -> float | None:
        """Hear of the others; return since when nobody answers, or None."""
        try:
            self._exchange()
        except Exception:  # the store's own errors have no common base that is public
            lost_at = lost_at or now
            if now - lost_at > LOST_S and not self._closed.is_set():
                self._leave(f"process {self._rank}: the first process of this run is gone", 1)
            return lost_at
        return None

    def _look_after_children(self) -> None:
        """End this process if one that it started has failed; Lightning would kill it without a word."""
        if self.told is not None or self._parting:
            return  # they are told as well, and this one has until its time is up
        for number, child in enumerate(getattr(self._launcher, "procs", ()), start=1):
            status = child.poll()
            if not status or self._closed.is_set():
                continue
            if status == 2:
                self._leave(None, 2)  # it has said why
            signum = -status if status < 0 else status - 128
            if signum > 0:
                how, status = f"was ended by {signal.Signals(signum).name}", 128 + signum
            else:
                how = f"failed with status {status}"
            self._leave(f"process {number} of this run {how}; {self._next()}", status)

    def _exchange(self) -> None:
        """Say what this process was told, and hear what others were."""
        if self._store is None:
            return
        if self.told is not None:
            self._store.set("told", str(self.told))
        elif self._store.check(["told"]):
            self._tell(int(self._store.get("told")))
        if self._store.check(["left"]) and not self._closed.is_set():
            rank, status = map(int, self._store.get("left").decode().split())
            # The first process is left to end by itself: it may be saving.
            if rank != self._rank and (self._rank > 0 or self.told is None):
                self._leave(None, status)

    def _part(self, error: BaseException) -> None:
        """Let the other processes know that this one ends, and with which status they are to end too.

        Raises:
            SystemExit: where another process ended first, and its end is all that is wrong here.
        """
        if self._store is None:
            return
        try:
            other = self._left()
            if other is not None and not isinstance(error, SystemExit):
                raise SystemExit(other) from error
            status = error.code if isinstance(error, SystemExit) else 2 if self._foreseen(error) else 1
            self._store.set("left", f"{self._rank} {status if isinstance(status, int) else 1}")
            time.sleep(2 * _TICK_S)  # the store ends with the process that holds it
        except dist.DistError:
            return

    def _left(self) -> int | None:
        """Return the status that another process ended with; its end may be noticed a moment before its word."""
        for _ in range(8):
            if self._store.check(["left"]):
                rank, status = map(int, self._store.get("left").decode().split())
                return status if rank != self._rank else None
            time.sleep(_TICK_S)
        return None

    def _leave(self, line: str | None, status: int) -> None:
        """End this process from outside its main thread, which is waiting for something that will not come."""
        if line is not None:
            print(f"\n{line}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(status)

    def _farewell(self) -> str:
        return f"stopped by {signal.Signals(self.told or signal.SIGTERM).name}{self._saved}; {self._next()}"

    def _next(self) -> str:
        if (self.folder / LAST_CHECKPOINT).is_file():
            return f"go on with {self.command}"
        return "nothing is saved yet: start it again"

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Listen while the block lasts; if it is stopped, says how the run goes on.

        Raises:
            Stopped: with the signal's status, whatever the stop came through as.
        """
        try:
            with self:
                yield
        except (KeyboardInterrupt, SystemExit) as stop:
            if self.told is None:
                raise
            self._finish(self.told)
            raise Stopped(self.told) from stop

    def _finish(self, told: int) -> None:
        """Say how the run goes on, and have SLURM start it again where its signal asked for that."""
        self.end_children()
        if self._rank > 0:
            return
        log.error("%s", self._farewell())
        if told in (signal.SIGUSR1, signal.SIGUSR2) and (self.folder / LAST_CHECKPOINT).is_file():
            if self.again:
                requeue()
            else:
                log.error("SLURM is not asked to start a sweep again, which would begin with its first run")

    def saved(self, where: str) -> None:
        """Note where the run was saved, for the line that it ends with."""
        self._saved = f" {where}"

    def take_over(self, trainer: pl.Trainer, processes: FurtherProcesses | None = None) -> None:
        """Take Lightning's signal handling out of a trainer, with the broadcast that it makes before every step.

        Args:
            trainer: not yet at work.
            processes: what starts its further processes; None: what Lightning takes this program to be.
        """
        trainer._signal_connector = _Silent(trainer)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        # Lightning's observer kills this process as soon as one that it started has ended, in the middle of a stop
        # too; the watch looks after them.
        start_by(trainer, processes, observed=False)
        self._launcher = trainer.strategy.launcher

    def end_children(self) -> None:
        """Tell processes that this one started to end; they have nobody to go on with."""
        if hasattr(self._launcher, "procs"):
            self._launcher.kill(signal.SIGTERM)


_LISTENING: list[StopWatch] = []
"""The watches of this process that have a thread."""


@functools.cache
def _hear_of_forks() -> None:
    """Have the watches at rest while this process is forked; asked for once, since Python never lets go of it."""

    def all_do(act: Callable[[StopWatch], None]) -> Callable[[], None]:
        def do() -> None:
            for watch in _LISTENING:
                act(watch)

        return do

    os.register_at_fork(
        before=all_do(StopWatch.quieten),
        after_in_parent=all_do(StopWatch.resume),
        after_in_child=all_do(StopWatch.deafen),
    )


def requeue(run: Callable[..., Any] = subprocess.run) -> bool:
    """Ask SLURM to start this job again, which goes on in the same folder.

    Args:
        run: starts a command.

    Returns:
        Whether SLURM said that it will.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        done = run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        log.error("SLURM job %s cannot be requeued: %s", job, error)
        return False
    if done.returncode:
        log.error("SLURM job %s cannot be requeued: %s", job, done.stderr.strip())
        return False
    log.info("SLURM job %s is requeued", job)
    return True


class SaveWhenTold(Callback):
    """End a training that is told to stop, with a checkpoint to go on from.

    The first process decides when, saves and leaves; the others, which may be waiting for it in the middle of the
    next step, are ended by their watches.

    Args:
        watch: entered.
    """

    def __init__(self, watch: StopWatch) -> None:
        self.watch = watch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the watch hear of the other processes."""
        self.watch.connect()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a signal wait for the end of a batch from here on."""
        self.watch.training_begins()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after an epoch, if it has its checkpoint; else after the next batch."""
        if self.watch.told is None or not trainer.is_global_zero or trainer.current_epoch == 0:
            return
        files = files_of(trainer)
        if files.step == trainer.global_step:
            files.wait()
            self.watch.saved(f"after epoch {trainer.current_epoch}, saved")
            raise Stopped(self.watch.told)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop in the middle of an epoch; after its last batch the epoch is ended first."""
        if self.watch.told is None or not trainer.is_global_zero:
            return
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.is_last_batch:
            files_of(trainer).wanted = True
            return
        if loop._should_accumulate():
            return  # gradients are in no checkpoint
        if not getattr(trainer.strategy, "saves_alone", True):
            raise Stopped(self.watch.told)  # which goes on from the last one
        save_at_once(trainer, self.watch.folder / LAST_CHECKPOINT)
        files_of(trainer).wait()
        of = trainer.num_training_batches
        self.watch.saved(f"in epoch {trainer.current_epoch + 1} after batch {batch_idx + 1} of {of}, saved")
        raise Stopped(self.watch.told)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a signal end the process at once from here on: all of the training is saved."""
        if trainer.is_global_zero:
            files_of(trainer).wait()
        self.watch.training_ended()
        if self.watch.told is not None:
            self.watch.saved("after the last epoch, saved")
            raise Stopped(self.watch.told)


class _Silent(_SignalConnector):
    """In the place of Lightning's handlers."""

    def register_signal_handlers(self) -> None:
        """Leave the signals to the watch."""
        self.received_sigterm = False

    def teardown(self) -> None:
        """Have nothing to restore."""
