"""The short pages of `lightning-csn fit`, `validate`, `test` and `predict`, of the options that most runs need.

They are written by hand, so that they import nothing heavy; `--help_all` has every option, from the signatures.
"""

from __future__ import annotations

_ALL = "fit validate test predict"
TRAINER_OPTIONS = (  # flag, whose commands, what it is
    ("--data.root FOLDER", _ALL, "videos: a folder per class, with or without train, val and test above"),
    ("--data.train_list FILE", "fit", "lines 'path label' in place of folders; also val_list, test_list"),
    ("--data.batch_size N", "fit", "videos per step"),
    ("--data.test_clips N", "test predict", "clips per video; --data.test_crops N: squares per clip"),
    ("--data.num_workers N", _ALL, "processes that read videos"),
    ("--model.pretrained SOURCE", _ALL, "weights: a name of 'lightning-csn checkpoints', a file, folder or address"),
    ("--model.architecture NAME", "fit", "from scratch: ircsn_50, ipcsn_152, resnet3d_18, ..."),
    ("--model.lr X", "fit", "highest learning rate; also optimizer, schedule, warmup_epochs, weight_decay"),
    ("--model.clip DICT", "fit", "how clips must look, where not as the weights ask: '{frames: 16, step: 4}'"),
    ("--trainer.max_epochs N", "fit", "how long to train"),
    ("--trainer.devices N", _ALL, "GPUs or processes; also accelerator, strategy, precision, num_nodes"),
    ("--trainer.default_root_dir DIR", _ALL, "where runs are kept; default runs"),
    ("--ckpt_path FILE", "fit", "go on with a run: its weights, optimiser and epoch"),
    ("--resume", "fit", "begin a run, or go on with DIR/last.ckpt where there is one; as schedulers repeat a command"),
    ("--save_minutes X", "fit", "last.ckpt is written so often too, and not only after each epoch"),
    ("--ema DECAY", "fit", "validate and keep a running average of the weights, such as 0.999"),
    ("--ckpt_path FILE", "validate test predict", "the network of a run, as DIR/last.ckpt; no --model options needed"),
    ("--exact", "test predict", "run the network as it was trained, and not its quicker form"),
    ("--output FILE", "predict", "where the answers are written, .csv, .jsonl or .parquet; default predictions.csv"),
    ("--seed_everything N", _ALL, "of everything that is drawn; default 0"),
    ("--config FILE", _ALL, "options from a YAML file; what is typed after it wins"),
    ("--print_config", _ALL, "every option with its value, as such a file"),
    ("--help_all", _ALL, "every option with what it means"),
)
TRAINER_COMMANDS = {
    "fit": (
        "train or fine-tune a network on your videos",
        "The last and the best checkpoint of a run, its options and its curves go to a numbered folder below\n"
        "--trainer.default_root_dir; DIR/last.ckpt is the last checkpoint of the newest run.",
        (
            "lightning-csn fit --data.root my_videos --model.pretrained ircsn_152_ig65m",
            "lightning-csn fit --data.root my_videos --model.architecture ircsn_50 --trainer.max_epochs 60",
            "lightning-csn fit --config runs/version_0/config.yaml --ckpt_path runs/last.ckpt",
        ),
    ),
    "validate": (
        "score a network on the validation videos",
        "",
        ("lightning-csn validate --data.root my_videos --ckpt_path runs/last.ckpt",),
    ),
    "test": (
        "score a network on the test videos: 10 clips x 3 crops each, every video once",
        "",
        (
            "lightning-csn test --data.root my_videos --ckpt_path runs/last.ckpt",
            "lightning-csn test --data.root kinetics --model.pretrained ircsn_152_ig65m --trainer.devices 8",
        ),
    ),
    "predict": (
        "write the likeliest classes of every video of a data set into a file",
        "While it runs, the answers lie in FILE.parts; the same command goes on with a prediction\n"
        "that was stopped, on any number of processes.",
        ("lightning-csn predict --data.root my_videos --ckpt_path runs/last.ckpt --output answers.csv",),
    ),
}


def sentence(summary: str) -> str:
    """A summary with a capital and a full stop."""
    return f"{summary[0].upper()}{summary[1:]}."


def trainer_help(command: str) -> str:
    """A page for one of the Trainer's commands, without importing what it runs."""
    summary, more, examples = TRAINER_COMMANDS[command]
    options = [(flag, text) for flag, commands, text in TRAINER_OPTIONS if command in commands.split()]
    width = max(len(flag) for flag, _ in options)
    return "\n".join(
        [
            f"usage: lightning-csn {command} [--data.OPTION VALUE] [--model.OPTION VALUE] [--trainer.OPTION VALUE] ...",
            "",
            sentence(summary),
            *([more] if more else []),
            "",
            "the options that most runs need:",
            *(f"  {flag:<{width}}  {text}" for flag, text in options),
            "",
            "examples:",
            *(f"  {example}" for example in examples),
        ]
    )
