"""`lightning-csn`: every command that a shell can give.

A command is one row of COMMANDS: what it does in a line, a function that adds its options to a parser, and a function
that runs it and returns the exit code. The Trainer's commands (fit, validate, test, predict) are `trainer_commands`.

torch, Lightning and av are imported inside the functions that run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_csn import __version__
from lightning_csn.average import average_options, run_average
from lightning_csn.benchmark import benchmark_options, run_benchmark
from lightning_csn.check_data import check_data_options, run_check_data
from lightning_csn.classify_videos import classify_options, run_classify
from lightning_csn.data_source import KINETICS_MODEL
from lightning_csn.errors import InputError
from lightning_csn.export_model import export_options, run_export
from lightning_csn.extract_features import features_options, run_features
from lightning_csn.fit_probe import probe_options, run_probe
from lightning_csn.make_motion import make_motion_options, run_make_motion
from lightning_csn.pack_data import pack_options, run_pack
from lightning_csn.split_data import run_split_data, split_data_options
from lightning_csn.terminal import DONE, FAILED, INTERRUPTED, note, out_of_memory, table
from lightning_csn.trainer_help import TRAINER_COMMANDS, sentence, trainer_help
from lightning_csn.weights_commands import (
    checkpoints_options,
    convert_options,
    download_options,
    run_checkpoints,
    run_convert,
    run_download,
    run_verify,
    verify_options,
)


@dataclass(frozen=True)
class Command:
    """A row of the table of commands."""

    summary: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


COMMANDS = {
    "classify": Command("what happens in a video: its likeliest classes", classify_options, run_classify),
    "checkpoints": Command("the weights there are: accuracy, size, licence", checkpoints_options, run_checkpoints),
    "download": Command("fetch weights, for a machine that goes offline", download_options, run_download),
    "convert": Command("weights of other projects to safetensors and config.json", convert_options, run_convert),
    "verify": Command("check weights: whole, complete, as published", verify_options, run_verify),
    "check-data": Command(
        "read every video of a data set: what is there, and what would go wrong", check_data_options, run_check_data
    ),
    "split-data": Command(
        "divide a data set into train, val and test, without leaks", split_data_options, run_split_data
    ),
    "pack": Command("make a data set small and quick to read, in shards for any storage", pack_options, run_pack),
    "features": Command(
        "what a network holds of each video, for a classifier of your own", features_options, run_features
    ),
    "probe": Command(
        "a linear or nearest-neighbour classifier of features: the first figure to have", probe_options, run_probe
    ),
    "average": Command("the figures of a test again, with another mean of its views", average_options, run_average),
    "export": Command(
        "write a network as a file for ONNX Runtime, OpenVINO or torch.export", export_options, run_export
    ),
    "make-motion": Command("make a small labelled video set to try things on", make_motion_options, run_make_motion),
    "benchmark": Command("how fast a network runs here, and how near the floor", benchmark_options, run_benchmark),
}

EPILOG = f"""examples:
  lightning-csn classify holiday.mp4 --model {KINETICS_MODEL}
  lightning-csn fit --data.root my_videos --model.pretrained {KINETICS_MODEL}
  lightning-csn test --data.root my_videos --ckpt_path runs/last.ckpt

'lightning-csn COMMAND --help' says more about one. Exit codes: 0 done; 2 the input or an option
cannot be used, as the message says; 130 interrupted; 143 ended by SIGTERM, as by a scheduler;
1 a bug, with its traceback."""


class CommandParser(ArgumentParser):
    """Of one command: it refuses options by itself, for argparse would show the usage of all commands in its place."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As ArgumentParser, but that nothing is left over; an option is told the nearest one."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            message = f"unrecognized arguments: {' '.join(unknown)}"
            for name in [token.split("=")[0] for token in unknown if token.startswith("--")]:
                for nearest in difflib.get_close_matches(name, list(self._option_string_actions), n=1):
                    message += f"; {name}: the nearest option is {nearest}"
            self.error(message)
        return found, unknown


def make_parser() -> ArgumentParser:
    """The parser of every command; the Trainer's are listed in it and parsed elsewhere."""

    def style(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=110)

    summaries = {name: summary for name, (summary, _, _) in TRAINER_COMMANDS.items()}
    summaries |= {name: command.summary for name, command in COMMANDS.items()}
    listed = table([(f"  {name}", summary) for name, summary in summaries.items()])
    parser = ArgumentParser(
        "lightning-csn",
        usage="lightning-csn COMMAND ...",
        description=f"Video classification with channel-separated convolutional networks (CSN).\n\ncommands:\n{listed}",
        epilog=EPILOG,
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"lightning-csn {__version__}")
    parsers = parser.add_subparsers(
        metavar="COMMAND",
        required=True,
        prog="lightning-csn",
        help=argparse.SUPPRESS,
        parser_class=CommandParser,
    )
    for name, command in COMMANDS.items():
        options = parsers.add_parser(name, description=sentence(command.summary), formatter_class=style)
        command.add_options(options)
        options.set_defaults(run=command.run)
    for name in TRAINER_COMMANDS:
        parsers.add_parser(name)  # never parsed here; one of the choices that an unknown command is told
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 with a message on stderr, 130, or 143 after SIGTERM."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with messages():
            code = run_trainer(argv[0], argv[1:]) if argv[:1] and argv[0] in TRAINER_COMMANDS else run_parsed(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        note(f"error: {error}")
        return FAILED
    except (RuntimeError, MemoryError) as error:
        if "torch" not in sys.modules or not out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no more is to be had"])[0]
        note(f"error: out of memory: {reason}; smaller batches, or shorter or smaller clips, need less")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `lightning-csn checkpoints | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return DONE
    except SystemExit as stop:  # of a parser; or of the Trainer, which turns an interruption into exit(1)
        if isinstance(stop.__context__, KeyboardInterrupt):
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else DONE


def run_parsed(argv: list[str]) -> int:
    """Run a command of COMMANDS."""
    args = make_parser().parse_args(argv or ["--help"])
    code: int = args.run(args)
    return code


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """What the package logs, on stderr, from the first process only."""
    logger = logging.getLogger("lightning_csn")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run_trainer(command: str, argv: list[str]) -> int:
    """fit, validate, test and predict have LightningCLI's parser."""
    if {"-h", "--help"} & set(argv):
        print(trainer_help(command))
        return DONE
    # OpenMP's threads spin while they wait for each other, and take the processor from the workers that read videos:
    # on two cores training was 1.6 to 3 times as fast without. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from lightning_csn import trainer_commands

    summary = sentence(TRAINER_COMMANDS[command][0])
    trainer_commands.run(command, summary, ["--help" if token == "--help_all" else token for token in argv])
    return DONE
