"""fit, validate, test and predict: Lightning's command line over LitCSN and VideoDataModule.

What this adds to LightningCLI: options given by hand win over what a checkpoint holds, or are refused where the weights
contradict them (LightningCLI ignores them without a word, Lightning pull request 21455);
every run keeps its checkpoints, and DIR/last.ckpt is the last one of the newest run.

Imported by `cli` once one of these commands runs: importing Lightning takes seconds.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import logging
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_csn.callbacks import PeakMemory, UnreadableVideos
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError, SharedError, check_number
from lightning_csn.last_checkpoint import SAVE_MINUTES, LastCheckpoint, WholeCheckpoint
from lightning_csn.many import PredictionWriter, VideoBar
from lightning_csn.merge_options import merge_settings
from lightning_csn.metrics import COUNTS
from lightning_csn.models.fold import keep_memory
from lightning_csn.module import LitCSN
from lightning_csn.processes import leave
from lightning_csn.resumed_run import averaging_of_run, folder_of_run, read_checkpoint
from lightning_csn.runner import need_to_answer, refuse_exact
from lightning_csn.scores_writer import ScoresWriter
from lightning_csn.sharding import ShardedStrategy, register_strategies
from lightning_csn.terminal import out_of_memory

_log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "max_epochs": 20,  # Lightning's own default is 1000
    "log_every_n_steps": 10,  # its 50 are more than an epoch of a few hundred videos has
}

# The list file that a command cannot do without, unless it has a folder.
LISTS = {"fit": "train_list", "validate": "val_list", "test": "test_list", "predict": "predict_list"}
# Options of VideoDataModule that name some videos ...
VIDEOS = ("root", "train_list", "val_list", "test_list", "predict_list", "predict_videos")
# ... and what a test of them needs to know: which they are, and which views of them were asked for.
FOR_TEST = ("root", "test_list", "layout", "fold", "frames_fps", "test_clips", "test_crops")

# Options of LitCSN that the videos decide in training, and what to do instead.
DECIDED_BY_VIDEOS = {"classes": ", or give --data.classes for other names or another order", "multi_label": ""}


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning's log without its tips to install further products, two a run."""
    return "Tip: For seamless cloud" not in record.getMessage()


def run(command: str, description: str, argv: list[str]) -> None:
    """Run fit, validate, test or predict with options as they were typed; SystemExit from the parser (2, or 0)."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_advertisement)
    register_strategies()
    with warnings.catch_warnings():
        # LightningCLI 2.6 calls add_instantiator, instantiate_classes and skip_none of jsonargparse, which jsonargparse
        # 4.49 calls deprecated: no business of whoever trains a network, and not ours to change.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
        # Lightning 2.6 asks torch's trees for their leaves in a way that torch 2.12 calls deprecated.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        if command != "fit":  # a checkpoint holds the state of callbacks that only training has
            warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`, callbacks used to create")
        TrainerCommand(command, description, argv).run_command()


class TrainerCommand(LightningCLI):
    """One of the Trainer's methods as a command; options are data.*, model.*, trainer.* and a few of its own."""

    def __init__(self, command: str, description: str, argv: list[str]) -> None:
        self.command = command
        self.folder: str | None = None  # for checkpoints, where a run goes on that has one
        self.averaging: dict[str, Any] | None = None  # the settings of EMA of the run to go on with, if it had some
        self.writer: ScoresWriter | None = None  # of a test whose scores are kept
        self.typed = {token[2:].split("=")[0] for token in argv if token.startswith("--")}
        super().__init__(
            LitCSN,
            VideoDataModule,
            save_config_callback=SaveConfigCallback if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"lightning-csn {command}",
                "usage": "%(prog)s [--data.OPTION VALUE] [--model.OPTION VALUE] [--trainer.OPTION VALUE] [...]",
                "description": description,
            },
            args=argv,
            run=False,  # one parser, for this command alone; run_command does the rest
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # LitCSN writes its hyper-parameters itself, with all of them filled in
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Data and model first: Trainer's forty options are for later."""
        for key, kind in (("data", VideoDataModule), ("model", LitCSN)):
            # jsonargparse would take a clip as a whole ClipSpec or not at all, but it may be given in part.
            parser.add_class_arguments(kind, key, skip={"clip"}, fail_untyped=False, sub_configs=True)
            parser.add_argument(
                f"--{key}.clip", type=dict[str, Any] | None, default=None, help=argument_help(kind, "clip")
            )
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """--ckpt_path and each command's own; in training the data name the classes, and say if there are several."""
        purpose = "go on with this run" if self.command == "fit" else "the network of this run"
        parser.add_argument("--ckpt_path", type=str | None, help=f"A file that fit wrote (.ckpt): {purpose}.")
        if self.command == "fit":
            parser.link_arguments("data", "model.classes", self.classes_to_learn, apply_on="instantiate")
            parser.link_arguments("data.multi_label", "model.multi_label", apply_on="instantiate")
            parser.add_argument(
                "--resume",
                action="store_true",
                help="Go on with DIR/last.ckpt, DIR being trainer.default_root_dir, if there is one: the same command "
                "begins a run and goes on with it, as schedulers repeat it. Several machines need a DIR that all see.",
            )
            parser.add_argument(
                "--save_minutes",
                type=float,
                default=SAVE_MINUTES,
                help="last.ckpt is written after so many minutes too, not only after each epoch and when training is "
                "stopped: no more is lost where the machine fails.",
            )
            parser.add_argument(
                "--ema",
                type=float | None,
                metavar="DECAY",
                help="Validate and keep a running average of the weights, of which so much stays at a step, such as "
                "0.999; less in the first steps. A run that is gone on with goes on averaging.",
            )
        if self.command in ("test", "predict"):
            parser.add_argument(
                "--exact", action="store_true", help="Run the network as it was trained, and not its quicker form."
            )
        if self.command == "predict":
            parser.add_argument(
                "--output",
                type=str,
                default="predictions.csv",
                help="Where the answers are written: a file that ends in .csv, .jsonl or .parquet. The same command "
                "goes on with a prediction that was stopped.",
            )
        if self.command == "test":
            parser.add_argument(
                "--scores",
                type=str | None,
                metavar="FILE.npz",
                help="Where the scores of each view are written while the test runs: the same command goes on with a "
                "test that was stopped, and 'lightning-csn average FILE.npz' averages otherwise without a second test.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As LightningCLI, and once more without the defaults, to know what was given by hand."""
        for name in sorted(DECIDED_BY_VIDEOS.keys() & {option.removeprefix("model.") for option in self.typed}):
            if self.command == "fit":
                raise decided_by_videos(name)
        try:
            self.config = parser.parse_args(args)
            self.given = parser.parse_args(args, defaults=False)
        except SystemExit:
            for line in nearest_options(self.typed, list(parser._option_string_actions)):
                print(line, file=sys.stderr)
            if args and Path(args[0]).exists():  # the one argument that other commands have
                print(f"{args[0]}: the folder of the videos is named by --data.root {args[0]}", file=sys.stderr)
            raise
        except UnicodeDecodeError as error:
            named = [token.removeprefix("--config=") for token in args if token.startswith("--config=")]
            named += [file for flag, file in itertools.pairwise(args) if flag == "--config"]
            where = " or ".join(named) or "one of the files given"
            raise InputError(f"--config {where}: no file of options, which is text (YAML): {error}") from error

    def before_instantiate_classes(self) -> None:
        """Bring together what was given by hand and what the checkpoint holds."""
        if self.command in ("test", "predict"):
            refuse_exact(self.config.model.pretrained, self.config.exact)
        if self.command == "predict":
            need_to_answer(self.config.model.pretrained, self.config.output)
        if all(self.config.data[name] is None for name in VIDEOS):
            raise self.lack_of_videos()
        resumed = self.command == "fit" and self.config.resume and self.config.ckpt_path is None
        if resumed and (last := Path(self.config.trainer.default_root_dir, "last.ckpt")).is_file():
            self.config.ckpt_path = str(last)
        if self.config.ckpt_path is None:
            if self.command != "fit" and self.config.model.pretrained is None:
                raise InputError(
                    f"{self.command} needs a network: --ckpt_path FILE of a run, or --model.pretrained NAME, FILE or "
                    "FOLDER ('lightning-csn checkpoints' lists the names)"
                )
            return
        checkpoint = read_checkpoint(self.config.ckpt_path)
        if "model.pretrained" in self.typed and not resumed:
            raise InputError(
                "--ckpt_path and --model.pretrained both bring weights; give one of them (--model.pretrained "
                f"{self.config.ckpt_path} starts a new run from the weights of that file)"
            )
        self.folder = folder_of_run(checkpoint, str(self.config.trainer.default_root_dir))
        self.averaging = averaging_of_run(checkpoint)
        merged = merge_settings(
            checkpoint["hyper_parameters"],
            plain(self.given.get("model", Namespace())),
            typed={name.split(".")[1] for name in self.typed if name.startswith("model.")},
            defaults=plain(self.parser.get_defaults().model),
            resume=self.command == "fit",
        )
        for name, value in merged.items():
            self.config.model[name] = value
        if self.command == "fit" and self.config.data.classes is None:
            self.config.data.classes = merged["classes"]  # labels go on meaning what they meant

    def lack_of_videos(self) -> InputError:
        """The message for a command that was not told which videos."""
        listed, root = f"a list file (--data.{LISTS[self.command]} FILE)", self.config.data.root
        if root is not None and Path(root).is_file():
            return InputError(f"--data.root {root}: this is a file, not a folder; if it lists videos, give {listed}")
        return InputError(f"{self.command} needs videos: --data.root FOLDER, or {listed}")

    def classes_to_learn(self, data: VideoDataModule) -> list[str]:
        """The classes of the videos to train on; InputError where they are fewer than two, or others than asked for."""
        root, asked = self.config.data.root, self.config.model.num_classes
        lists = [str(path) for name in VIDEOS[1:] if (path := self.config.data[name]) is not None]
        if not data.samples:
            if lists or not Path(root).expanduser().is_dir():
                raise self.lack_of_videos()
            raise InputError(
                f"{root}: the videos lie in no class folder; put them into {Path(root)}/CLASS/VIDEO, or give list files"
            )
        where, kind = (", ".join(lists), "class") if lists else (root, "class folder")
        if len(data.classes) == 1:
            raise InputError(f"{where}: only one {kind} ({data.classes[0]}); a classifier needs two or more")
        model = plain(self.given.get("model", Namespace()))
        for name in DECIDED_BY_VIDEOS:
            if model.get(name) not in (None, getattr(data, name)):
                raise decided_by_videos(name)
        if self.config.ckpt_path is None and asked not in (None, data.num_classes):
            raise InputError(
                f"--model.num_classes {asked}: {where} has {data.num_classes} classes; leave num_classes out, the "
                "videos decide"
            )
        return data.classes

    def instantiate_classes(self) -> None:
        """As LightningCLI; and say which network is trained where nobody chose one."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not isinstance(error, InputError) and isinstance(error.__cause__, InputError):
                raise error.__cause__ from None  # jsonargparse wraps what classes_to_learn raises
            raise
        chosen = (self.config.ckpt_path, self.config.model.pretrained, self.config.model.architecture)
        if self.command == "fit" and chosen == (None, None, None):
            network = self.model.network
            parameters = sum(parameter.numel() for parameter in network.parameters())
            _log.info(
                "%s (%s parameters) is trained from scratch; --model.pretrained starts from weights",
                network.architecture,
                f"{parameters:,}",
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Training keeps its curves and its last and best checkpoint, unless given a logger or callbacks for that."""
        settings = self.config_init.trainer
        given = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        callbacks: list[Callback] = [callback for callback in given if callback is not None]
        callbacks.append(UnreadableVideos(write_list=True))
        if settings.logger is None:
            settings.logger = CSVLogger(settings.default_root_dir, name="") if self.command == "fit" else False
        if self.command == "fit":
            check_number("--save_minutes", self.config.save_minutes, 0)
            callbacks.append(PeakMemory())
            callbacks += self.averages(callbacks)
            if not self.datamodule.has_split("val"):
                settings.limit_val_batches = 0
            if settings.enable_checkpointing is not False:
                own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
                if not own and settings.limit_val_batches != 0:
                    monitor = self.model.monitor
                    best = f"{{epoch}}-{{{monitor}:.4f}}"
                    callbacks.append(WholeCheckpoint(self.folder, filename=best, monitor=monitor, mode="max"))
                callbacks.append(LastCheckpoint(self.folder, minutes=self.config.save_minutes))
        if self.command == "predict":
            callbacks.append(PredictionWriter(self.config.output))
            if settings.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
                callbacks.append(VideoBar())  # in place of Lightning's, which counts batches
        if self.command == "test" and self.config.scores is not None:
            self.writer = ScoresWriter(self.config.scores)
            callbacks.append(self.writer)
        settings.callbacks = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:  # devices 'x' is a TypeError
            remedy = ""
            if "requires a GPU accelerator" in str(error):
                remedy = f" On CPUs --trainer.strategy {ShardedStrategy.NAME} shards the network."
            raise InputError(f"the Trainer cannot be made with these options: {error}{remedy}") from error

    def averages(self, callbacks: Sequence[Callback]) -> list[EMA]:
        """EMA where it was asked for or the run that goes on had it; none with one among the callbacks."""
        decay = self.config.ema
        if decay is None and "ema" in self.typed and self.averaging is not None:
            raise InputError(
                f"--ema null: the run to go on with averages its weights (decay {self.averaging['decay']:g}), and goes "
                f"on so; to train the averages without, start a new run: --model.pretrained {self.config.ckpt_path}"
            )
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            if decay is not None:
                raise InputError(f"--ema {decay:g}: one of --trainer.callbacks averages the weights already")
            return []
        if self.averaging is None:
            return [] if decay is None else [EMA(decay)]
        return [EMA(**self.averaging | ({} if decay is None else {"decay": decay}))]

    def run_command(self) -> None:
        """Call the Trainer's method, and say where things are."""
        keep_memory()
        if self.command in ("test", "predict"):
            self.model.exact = self.config.exact
        method = getattr(self.trainer, self.command)
        options = {"return_predictions": False} if self.command == "predict" else {}
        problem: str | None = None
        signum: int | None = None
        try:
            method(
                self.model, datamodule=self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True, **options
            )
        except SharedError as error:
            problem = str(error)
        except MisconfigurationException as error:
            raise InputError(str(error)) from error
        except OSError as error:
            if not is_of_writing(error, self.trainer.default_root_dir):
                raise
            folder = shown(self.trainer.default_root_dir)
            raise InputError(f"--trainer.default_root_dir {folder}: the run cannot be written: {error}") from error
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                self.report_interruption()
                raise
            if not isinstance(stop, SIGTERMException):
                raise
            signum = signal.SIGTERM
        except (RuntimeError, MemoryError) as error:
            asked = next(
                (one.asked for one in self.trainer.checkpoint_callbacks if isinstance(one, LastCheckpoint)), None
            )
            if asked is None and out_of_memory(error):
                raise self.lack_of_memory(error) from error
            if asked is None:
                raise
            signum = asked  # a worker got the signal, too, and ended before it was to
        # Below, and not in the handlers: what they handle holds the group, see `leave`.
        if problem is not None:
            leave()
            if self.trainer.is_global_zero:
                raise SharedError(problem)
            return  # as if all were well: where one process fails, Lightning kills the first, which has this to say
        if signum is not None:
            self.end_by(signum)
            return
        if self.command == "fit":
            self.report_checkpoints()
        if self.command == "predict":
            self.report_answers()
        leave()

    def lack_of_memory(self, error: BaseException) -> InputError:
        """The message for a batch that is too large for the device."""
        remedies = [f"--model.views_per_pass below {self.model.hparams['views_per_pass']}", "--data.eval_batch_size 1"]
        if self.command == "fit":
            size = self.datamodule.batch_size
            remedies = [
                f"--data.batch_size below {size} (with --trainer.accumulate_grad_batches a step has as many clips)",
                "--trainer.precision bf16-mixed",
                "--model.checkpointing '[1,2]'",
                "smaller or fewer frames (--model.clip)",
            ]
        reason = (str(error).strip().splitlines() or ["no more is to be had"])[0]
        return InputError(f"out of memory on {self.model.device}: {reason}\nWhat would do: {'; or '.join(remedies)}")

    @rank_zero_only
    def report_answers(self) -> None:
        """Where the answers are, and where the time went."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        writer = next(one for one in callbacks if isinstance(one, PredictionWriter))
        assert writer.counts is not None  # the prediction is over
        print(f"answers: {self.config.output} ({writer.counts})")
        if writer.times.videos:
            _log.info("%s%s", writer.times, "" if self.trainer.world_size == 1 else " (the first process)")

    def end_by(self, signum: int) -> None:
        """End as programs do that a signal ended, so that a scheduler does not take the run for finished."""
        self.report_interruption()
        leave()
        if self.trainer.is_global_zero:  # where another process fails, Lightning kills this one
            raise SystemExit(128 + signum)

    @rank_zero_only
    def report_interruption(self) -> None:
        """What a command that was stopped has kept, and how to go on with it."""
        if self.writer is not None:
            print(f"interrupted; {self.writer.kept()}")
        if self.command == "predict":
            print("interrupted; the same command goes on with the videos that are left")
        if self.command != "fit":
            return
        kept = next((one for one in self.trainer.checkpoint_callbacks if isinstance(one, LastCheckpoint)), None)
        if kept is None or not kept.best_model_path:
            print("interrupted before the first checkpoint: nothing was kept")
            return
        last = shown(kept.newest(self.trainer) or kept.best_model_path)
        # Not trainer.log_dir, for which all processes wait for each other.
        config = Path(getattr(self.trainer.logger, "log_dir", None) or self.trainer.default_root_dir, "config.yaml")
        options = f"--config {shown(config)}" if config.is_file() else "..."
        print(f"interrupted; last checkpoint: {last}")
        print(f"to go on: lightning-csn fit {options} --ckpt_path {last}")

    @rank_zero_only
    def report_checkpoints(self) -> None:
        """The figures of validation, which files the run left, and the command that tests them."""
        measured = self.trainer.callback_metrics
        named = [name for name in measured if name.startswith("val_") and name.removeprefix("val_") not in COUNTS]
        if named:
            print("last validation: " + ", ".join(f"{name} {measured[name]:.4f}" for name in named))
        every = self.trainer.check_val_every_n_epoch or 1
        if not named and self.datamodule.has_split("val") and self.trainer.current_epoch < every:
            print(f"no validation: it is every {every} epochs (--trainer.check_val_every_n_epoch)")
        kept = [callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in kept:
            if callback.monitor is not None and callback.best_model_score is not None:
                print(f"best {callback.monitor} {callback.best_model_score:.4f}: {shown(callback.best_model_path)}")
        if kept and isinstance(kept[-1], LastCheckpoint) and kept[-1].best_model_path:
            last = kept[-1].newest(self.trainer) or kept[-1].best_model_path
            print(f"last: {shown(last)}")
            given, source = plain(self.given.get("data", Namespace())), f"--ckpt_path {shlex.quote(shown(last))}"
            if "all" in self.datamodule.samples:
                remark = "to test it (these are the videos it was trained on)"
            elif self.datamodule.has_split("test") or is_listed(given):
                remark = "to test it"
            elif self.datamodule.has_split("val"):
                videos = options_to_test({name: given.get(name) for name in ("root", "layout", "fold", "frames_fps")})
                print(f"there are no videos to test; of validation: lightning-csn validate {source} {videos}")
                return
            else:
                remark, given = "to test it", {**given, "root": "FOLDER"}
            print(f"{remark}: lightning-csn test {source} {options_to_test(given)}")


def is_of_writing(error: OSError, root: str) -> bool:
    """Whether the run's files could not be written: no space, or no such folder as `root` to be had."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True
    if not isinstance(error.filename, str):
        return False
    path, folder = Path(error.filename).absolute(), Path(root).absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)  # also a folder above it that cannot be made


def options_to_test(given: Mapping[str, Any]) -> str:
    """The options of `test` that name the videos, after a training with the options `given` of VideoDataModule.

    >>> options_to_test({"root": "my videos", "batch_size": 4})
    "--data.root 'my videos'"
    >>> options_to_test({"root": "videos", "train_list": "train.csv", "val_list": "val.csv"})
    '--data.root videos --data.test_list FILE'
    >>> options_to_test({"root": "videos", "flip": 0, "test_clips": 3})
    '--data.root videos --data.test_clips 3'
    """
    named = {name: given[name] for name in FOR_TEST if given.get(name) is not None}
    if is_listed(given):
        named.setdefault("test_list", "FILE")
    return " ".join(f"--data.{name} {shlex.quote(str(value))}" for name, value in named.items())


def is_listed(given: Mapping[str, Any]) -> bool:
    """Whether videos are named by a list, with which folders are not looked through."""
    return any(given.get(name) is not None for name in VIDEOS[1:])


def nearest_options(typed: Iterable[str], known: Sequence[str]) -> list[str]:
    """For each option that is none of those `known`, nor within one of them, a line with the one that may be meant.

    >>> nearest_options(["data.rot", "trainer.logger.name", "data.root"], ["--data", "--data.root", "--trainer.logger"])
    ['--data.rot: the nearest option is --data.root; --help_all lists all of them']
    """
    lines = []
    known = [option for option in known if option not in ("--data", "--model", "--trainer")]
    for name in typed:
        if any(f"--{name}" == option or f"--{name}".startswith((f"{option}.", f"{option}+")) for option in known):
            continue
        for nearest in difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.7):
            lines.append(f"--{name}: the nearest option is {nearest}; --help_all lists all of them")
    return lines


def decided_by_videos(name: str) -> InputError:
    """The message for an option of the model that the videos decide in training."""
    return InputError(f"--model.{name}: in training the videos decide; leave it out{DECIDED_BY_VIDEOS[name]}")


def shown(path: str | Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def plain(options: Any) -> dict[str, Any]:
    """A parser's namespace, as far down as it goes, as dicts."""
    return options.as_dict() if isinstance(options, Namespace) else dict(options)


def argument_help(kind: type, name: str) -> str:
    """What the docstring of a class says of an argument."""
    described = docstring_parser.parse(kind.__doc__ or "").params
    return next((param.description or "" for param in described if param.arg_name == name), "")
