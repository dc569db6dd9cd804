"""What is wrong with the user's input: the one kind of error with a message for a person; and its usual checks."""

from __future__ import annotations

import importlib.util
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

# Packages that may be missing, and the extra of this one that brings each.
EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "nncf": "int8",
    "pyarrow": "parquet",
    "matplotlib": "benchmark",
}


class InputError(ValueError):
    """A name, file, option or shape that cannot be used; the message says what was found and what would do.

    The command line prints the message and exits with 2; every other error is a bug and keeps its traceback.
    """


class SharedError(InputError):
    """An InputError that all processes of a run raise together, so that one of them can speak for all."""


def check_count(option: str, value: Any, least: int = 1) -> int:
    """`value`, NumPy's too, as an int; InputError unless it is a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{option} must be a whole number of {least} or more, got {value!r}")
    return int(value)


def check_number(option: str, value: Any, least: float, most: float = math.inf) -> None:
    """Raise InputError unless `value` is a finite number from `least` to `most`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most:
        bounds = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{option} must be a number {bounds}, got {value!r}")


def check_choice(option: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise InputError if `value` is none of `choices`; True and 1.0 are not 1."""
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise InputError(f"{option} must be one of {', '.join(map(str, choices))}, got {value!r}")


def need(wanted: Mapping[Any, Sequence[str]]) -> None:
    """InputError with one command that installs them all where optional packages are missing.

    wanted: what they are needed for, and their names, which are among EXTRAS.
    """
    lacking = {
        purpose: [name for name in names if not importlib.util.find_spec(name)] for purpose, names in wanted.items()
    }
    missing = list(dict.fromkeys(name for names in lacking.values() for name in names))
    if missing:
        texts = [f"{purpose} needs {' and '.join(names)}" for purpose, names in lacking.items() if names]
        are = "which is" if len(missing) == 1 else "which are"
        extras = ",".join(dict.fromkeys(EXTRAS[name] for name in missing))
        raise InputError(f"{'; '.join(texts)}, {are} not installed: pip install 'lightning-csn[{extras}]'")
