"""LastCheckpoint: the newest state of a run, whole whenever and however the run is stopped."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_csn.errors import SharedError

_log = logging.getLogger(__name__)

SAVE_MINUTES = 15.0  # of training, that are lost at most where a run is killed
HPC = "hpc_ckpt_*.ckpt"  # Lightning's name for the checkpoint of a job that is requeued


class WholeCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose files are there as a whole or not at all, and only once, however often a run is killed.

    A run that was killed after it had saved a checkpoint and goes on from before that replaces it by the same one.
    """

    def __init__(self, folder: str | None = None, **options: Any) -> None:
        super().__init__(folder, enable_version_counter=False, **options)

    @property
    def state_key(self) -> str:
        """That of ModelCheckpoint, as checkpoints have it that were written before there was this class."""
        return super().state_key.replace(WholeCheckpoint.__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """One name for the folder, whether a run begins there or goes on: Lightning compares names, and would take the
        file that it has just written for an older one elsewhere, and remove it.
        """
        super().setup(trainer, pl_module, stage)
        self.dirpath = real_path(self.dirpath)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ModelCheckpoint, with paths of one form: those of a run in ./runs are relative, or were once."""
        known = {real_path(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        paths = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path")
        real = {name: real_path(state_dict[name]) for name in paths if name in state_dict}
        super().load_state_dict(state_dict | {"best_k_models": known} | real)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """As ModelCheckpoint, but beside its place, then renamed: Lightning writes into the system's temporary folder,
        from which, on another disk, a file is copied over the one that is there.
        """
        part = filepath if "://" in filepath else f"{filepath}.part"
        super()._save_checkpoint(trainer, part)
        if part != filepath and trainer.is_global_zero:
            if os.path.isdir(filepath):  # sharded
                shutil.rmtree(filepath)
            elif os.path.isfile(part):
                write_through(part)
            os.replace(part, filepath)
        self._last_checkpoint_saved = filepath


class LastCheckpoint(WholeCheckpoint):
    """Keeps the newest state of a run as last.ckpt in its folder, and that of the newest run as DIR/last.ckpt.

    It is written after every epoch, before every validation, after so many `minutes` within an epoch, and when training
    is stopped: at an error, and at Ctrl-C and SIGTERM, for which the batch that is being learned is finished (a second
    Ctrl-C does not wait). From the middle of an epoch training goes on with the videos that are left, from the middle
    of a validation with the whole of that validation. Of several processes all stop at the same batch; an error of one
    of them is the end of all, and what was written before it is kept. A state in which an optimiser's step may be half
    done is never written.

    Under SLURM with Lightning's auto_requeue, its signal (USR1) stops the run in the same way, and then the job is
    requeued; Lightning itself would save amid a batch. DIR/hpc_ckpt_N.ckpt, from which Lightning goes on with a
    requeued job that names no checkpoint, is then the same file, and follows DIR/last.ckpt from there on.

    DIR is default_root_dir, below which every run has a numbered folder. ModelCheckpoint's own `save_last` saves when
    the best one is saved, and so not at the end of a run that got no better; its `save_on_exception` would wait for
    processes that know of no error.
    """

    def __init__(self, folder: str | None = None, *, minutes: float = SAVE_MINUTES) -> None:
        super().__init__(folder, filename="last", save_on_train_epoch_end=True)
        self.minutes = minutes
        self.asked: int | None = None  # the signal that asked the run to stop
        self._written = time.monotonic()
        self._alone = self._first = True  # one process; the first of several
        self._waiting = False  # for data: everything that was learned is whole
        self._whole = True  # no step of the optimiser is half done, nor has one a part of its batches
        self._to_validate = False  # what is saved is the state before a validation
        self._to_log = False  # Lightning has yet to log what this batch or epoch gave
        self._left_to_log: dict[str, float] = {}  # by the run that is resumed
        self._together = False  # all processes stop here
        self._requeue_signal: int | None = None  # where Lightning requeues the jobs of SLURM
        self._requeue = False  # whether the run is stopped to be requeued
        self._handlers: dict[int, Any] = {}

    def newest(self, trainer: Trainer) -> Path | None:
        """DIR/last.ckpt; None on storage that is not a file system, where there is none."""
        return None if "://" in str(trainer.default_root_dir) else Path(trainer.default_root_dir, "last.ckpt")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to lose: signals ask the run to stop, in place of ending it."""
        super().on_train_start(trainer, pl_module)
        self._written = time.monotonic()
        self._remove_parts(trainer)
        for logger in trainer.loggers if self._left_to_log else ():
            logger.log_metrics(self._left_to_log, step=trainer.global_step - 1)
            logger.save()
        self._left_to_log = {}
        self._alone, self._first = trainer.world_size == 1, trainer.is_global_zero
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        signals = [signal.SIGINT, signal.SIGTERM]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            self._requeue_signal = environment.requeue_signal
            signals.append(environment.requeue_signal)
        for signum in signals:
            if signal.getsignal(signum) is signal.SIG_IGN:  # as of what a shell runs in the background
                continue
            self._handlers[signum] = signal.signal(signum, self._ask)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of an epoch is waited for."""
        self._stop_if_asked(trainer)
        self._waiting = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here to the end of the batch no signal is let through."""
        self._waiting = False
        # By what Lightning numbers the steps in its logs: after an error in a batch, it counts that one twice.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Until the end of the batch, some weights may have changed and others not."""
        self._whole = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, and stop if that was asked for; after the last batch of an epoch its end does."""
        self._whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if not self._whole or trainer.is_last_batch:
            return
        self._to_log = trainer._logger_connector.should_update_logs
        signum, due = self._agree(trainer)
        if signum:
            self._stop(signum)  # on_exception saves
        if due:
            self._keep(trainer)
        self._to_log = False
        self._waiting = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation of training, which may take long, and stop if that was asked for."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._whole:
            self._to_validate = True
            self._keep(trainer)
            self._to_validate = False
        self._stop_if_asked(trainer)
        self._waiting = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is saved from here on has its validation behind it, although it has as many steps."""
        self._waiting = False
        self._last_global_step_saved = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation in the middle of an epoch; after one at its end, that does."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.is_last_batch:
            return
        if self._whole:
            self._keep(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What ModelCheckpoint saves after an epoch of training becomes DIR/last.ckpt, too."""
        self._waiting = False
        self._to_log = True
        super().on_train_epoch_end(trainer, pl_module)
        self._to_log = False
        self._link(trainer)
        self._written = time.monotonic()
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Signals are Lightning's again."""
        super().on_train_end(trainer, pl_module)
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was learned, if it is whole. Processes that know of no error would not come to save with this."""
        self._let_go(ignored=isinstance(exception, KeyboardInterrupt))
        together = self._alone or self._together or isinstance(exception, SharedError)
        learned = trainer.state.fn == "fit" and trainer.global_step != self._last_global_step_saved
        if together and learned and self._whole and not trainer.validating:  # before that, it was saved
            self._keep(trainer)
        if self._requeue and self._first:
            self._requeue_job(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """From before a validation a run goes on with it, and what the loggers do not have yet comes along.

        Lightning takes a validation that has not begun for one that is over, and goes on with the next epoch; one that
        was stopped in its first batch, it begins anew. It logs the figures of a batch or an epoch after its last hook,
        where a checkpoint is there already.
        """
        if self._to_log:
            figures = trainer._logger_connector.metrics["log"]
            checkpoint["to_log"] = {name: float(value) for name, value in figures.items()} | {
                "epoch": trainer.current_epoch
            }
        if self._to_validate:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counts in (progress["current"], progress["total"]):
                counts.update(ready=1, started=1, processed=0, completed=0)
            progress["is_last_batch"] = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What the run may have had no time to log."""
        self._left_to_log = checkpoint.get("to_log", {})

    def _ask(self, signum: int, frame: Any) -> None:
        """A signal has come: stop now if nothing is lost by it, and else after the batch."""
        if signum == signal.SIGTERM and self._requeue_signal is not None and self.asked == self._requeue_signal:
            return  # the end of a job that is about to stop
        again, self.asked = self.asked is not None, signum
        if hasattr(signal, "SIGCHLD"):  # workers may have got it too, and torch raises at their end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if again or (self._alone and self._waiting):
            self._requeue = signum == self._requeue_signal
            raise stop_by(signum)
        if self._first:  # not with print: it may be at work, and this comes in between
            os.write(2, b"\nstopping after this batch; a second Ctrl-C stops at once\n")

    def _let_go(self, *, ignored: bool = False) -> None:
        """Give the signals back; ignored: but for Ctrl-C, which Lightning ignores by now."""
        handlers, self._handlers = self._handlers, {}
        for signum, handler in handlers.items():
            if not (ignored and signum == signal.SIGINT):
                signal.signal(signum, handler)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        signum, _ = self._agree(trainer)
        if signum:
            self._stop(signum)

    def _stop(self, signum: int) -> None:
        self._together = True
        self._requeue = signum == self._requeue_signal
        raise stop_by(signum)

    def _requeue_job(self, trainer: Trainer) -> None:
        """Have SLURM run the job again, which goes on from what was kept: by --resume, or as Lightning finds it."""
        newest = self.newest(trainer)
        if newest is not None and newest.is_file() and not list(newest.parent.glob(HPC)):
            Path(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir)).touch()
            self._link(trainer)
        job = os.environ["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which SLURM ends the job, which is about to end
        try:
            code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
        except FileNotFoundError:
            code = 127
        if code:
            _log.warning("'scontrol requeue %s' failed with code %d: the job was not requeued", job, code)

    def _agree(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that any process got, 0 for none, and whether it is time to save for any."""
        due = time.monotonic() - self._written >= 60 * self.minutes
        if self._alone:
            return self.asked or 0, due
        found = torch.tensor([self.asked or 0, due], device=trainer.strategy.root_device)
        # Lightning waits for the device before each batch as well, for the same question.
        signum, late = trainer.strategy.reduce(found, reduce_op="max").tolist()
        return signum, bool(late)

    def _keep(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
            return
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._link(trainer)
        self._written = time.monotonic()

    @rank_zero_only
    def _remove_parts(self, trainer: Trainer) -> None:
        """Those that a run left which was killed while it wrote them."""
        newest = self.newest(trainer)
        if newest is None or self.dirpath is None:
            return
        for part in (*Path(self.dirpath).glob("*.ckpt.part"), *newest.parent.glob(f"{newest.name}.*.part")):
            part.unlink(missing_ok=True)

    @rank_zero_only
    def _link(self, trainer: Trainer) -> None:
        newest, last = self.newest(trainer), Path(self.best_model_path)
        if newest is None or not last.is_file():
            return
        for path in (newest, *newest.parent.glob(HPC)):
            link(last, path)


def link(file: Path, path: Path) -> None:
    """Have a file by another name too, in place of what has that; a file system without such links gets a copy."""
    if path.exists() and path.samefile(file):
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(file, part)  # Lightning replaces files that it saves: this one stays whole until the next
        except OSError:
            shutil.copyfile(file, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def real_path(path: Any) -> Any:
    """A path in full, without links; what is none (None, "", an address) as it is."""
    return os.path.realpath(path) if path and "://" not in str(path) else path


def write_through(path: str) -> None:
    """Have a file on the disk before it gets the name of another, for a machine that loses its power."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def stop_by(signum: int) -> BaseException:
    """What Python raises at Ctrl-C, and Lightning at SIGTERM."""
    return KeyboardInterrupt() if signum == signal.SIGINT else SIGTERMException()
