"""Read the tensors of a weights file, whatever wrote it, without ever running code that the file carries.

Weights come as safetensors, as PyTorch files (zip, or the older plain layout), as Lightning checkpoints, and as
Caffe2 pickles written by Python 2. A pickle is a program: so PyTorch's are read with `weights_only=True`, and
Caffe2's through `_DataUnpickler`, which knows arrays, strings, numbers and containers and nothing else. Which format
a file has is told by its first bytes, never by its name.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from lightning_csn.errors import InputError

WRAPPERS = ("state_dict", "model_state", "blobs")  # Lightning and mmaction2; PyTorchVideo and PySlowFast; Caffe2
OPTIMIZER = ("optimizer", "optimizer_state", "optimizer_states")  # as large as the weights, and of no use here
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.serialization.MAGIC_NUMBER as a pickle, after its protocol
SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own limit; its length comes first, in eight bytes

# What a damaged pickle raises: the `pickle` documentation names the first four and says that there are others.
DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    AssertionError,
    KeyError,
    MemoryError,  # for a length that no file has
    OSError,
    OverflowError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class TensorFile:
    """What a weights file holds.

    tensors: by the names that the file gives them.
    metadata: what stood beside them (a Lightning checkpoint's `hyper_parameters`, the `cfg` of PySlowFast, the string
        pairs of a safetensors file), without the optimiser's state.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_tensors(path: str | Path) -> TensorFile:
    """The tensors of a .safetensors, .pth, .pyth, .ckpt or Caffe2 .pkl file, on the CPU, in the file's own dtypes.

    Tensors below `state_dict`, `model_state` or `blobs` are found there. Raises InputError, always naming the file,
    for one that is missing, empty, cut off, damaged or not a weights file, and for a pickle with code in it: the
    message names the code, which is not run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if start[:1] == b"\x80" and start[2:].startswith(LEGACY_MAGIC):
        return _read_legacy(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER:
        return _read_safetensors(path)
    # protocol 2 and later, or 0 and 1, which begin with a dict or (OrderedDict) with the name of a global
    if start[:1] in (b"\x80", b"(", b"}") or re.match(rb"c[\w.]+\n[\w.]+\n", start):
        return _read_pickle(path)
    raise InputError(f"{path}: {_what_it_is(start)}")


def _what_it_is(start: bytes) -> str:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "the file is empty; delete it and download it again"
    if text.startswith(b"<"):
        return "this is a web page, not weights; open the address in a browser to see what it says, then download again"
    if text.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself"
    if start.startswith((b"MATLAB", b"\x89HDF\r\n\x1a\n")):
        return (
            "this is a MATLAB or HDF5 file, which is not read here; the CSN weights that are re-published as .mat"
            " exist as .pkl and .pth, or save scipy.io.loadmat's arrays as safetensors"
        )
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")) or start[257:262] == b"ustar":
        return "this is an archive; unpack it and give the weights file inside"
    return f"not a weights file (safetensors, PyTorch or Caffe2 pickle); it starts with {start[:16]!r}"


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return TensorFile({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: a damaged or incomplete safetensors file ({error})") from error


def _read_zip(path: Path) -> TensorFile:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged, or its end is missing ({error}); download it again") from error
    if "data.pkl" not in members:
        raise InputError(f"{path}: a zip archive without PyTorch weights; unpack it and give the weights file inside")
    if "constants.pkl" in members:
        raise InputError(f"{path}: a TorchScript program, which is code; save its state_dict() and give that")
    return _read_torch(path)


def _read_legacy(path: Path) -> TensorFile:
    if tarfile.is_tarfile(path):  # both at once, so that PyTorch before 2.6 would leave its safe loader: CVE-2025-32434
        raise InputError(f"{path}: a PyTorch file that is a tar archive too; it is not read")
    return _read_torch(path)


def _read_torch(path: Path) -> TensorFile:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED_PICKLE as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise _refusal(path, code[1]) from error
        advice = r"WeightsUnpickler error: |from a trusted source\."  # to load it unsafely, which comes first
        reason = re.split(advice, str(error))[-1].strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: damaged, incomplete, or not for PyTorch's safe loader ({reason})") from error
    return _unwrap(path, content)


def _refusal(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: refused: beside weights it holds {name}, which is code (it was not run);"
        f" if you trust the file, load it where it comes from and save only its state_dict"
    )


def _read_pickle(path: Path) -> TensorFile:
    with path.open("rb") as file:
        try:
            content = _DataUnpickler(file, encoding="latin1").load()
        except _CodeFound as error:
            raise _refusal(path, str(error)) from error
        except DAMAGED_PICKLE as error:
            reason = str(error) or type(error).__name__
            raise InputError(f"{path}: a damaged or incomplete pickle ({reason})") from error
    found = _unwrap(path, content)
    plain = {name: value for name, value in found.metadata.items() if isinstance(value, str | int | float)}
    return TensorFile(found.tensors, plain)


def _unwrap(path: Path, content: object) -> TensorFile:
    """Find the named tensors in what a pickle gave."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    named, metadata = content, {}
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            named = content[wrapper]
            metadata = {name: value for name, value in content.items() if name not in (wrapper, *OPTIMIZER)}
            break
    tensors = {}
    for name, value in named.items():
        tensor = _to_tensor(value)
        if tensor is None or not isinstance(name, str):
            entries = ", ".join(map(repr, list(named)[:10]))
            raise InputError(
                f"{path}: a tensor belongs at {name!r}, not a {type(value).__name__}; the entries here are {entries}"
                f"{', …' if len(named) > 10 else ''}, and tensors are looked for in {', '.join(WRAPPERS)} or at the top"
            )
        tensors[name] = tensor
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    return TensorFile(tensors, metadata)


def _to_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, _Array) and value.values is not None:
        return torch.from_numpy(value.values)
    if isinstance(value, int | float):  # Caffe2 keeps a learning rate or a count among the blobs
        return torch.tensor(value)
    return None


class _CodeFound(pickle.UnpicklingError):
    """A pickle asked for a global that is not among the few allowed; its text is the global's name."""


class _DataUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, strings, numbers, dicts, lists and tuples. Anything else ends the reading.

    Not even numpy's own functions are handed to the pickle: each allowed name gives a stand-in that checks what it is
    called with, so that nothing in the file can reach, call or change an object of this process.
    """

    def find_class(self, module: str, name: str) -> Any:
        make = _STAND_INS.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))  # renamed in numpy 2
        if make is None:
            raise _CodeFound(f"{module}.{name}")
        return _StandIn(make)


class _StandIn:
    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a pickle may not change a function")


class _Dtype:
    """Stands for numpy.dtype: a number type, made from a code such as 'f4', its byte order put in afterwards."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an unknown byte order {order!r}")
        self.order = order


class _Array:
    """Stands for numpy.ndarray: empty at first, its state put in afterwards. `values` has this machine's byte order."""

    __slots__ = ("values",)

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self._fill(content, dtype, shape, bool(fortran))

    def _fill(self, content: object, dtype: object, shape: Any, fortran: bool = False) -> None:
        if isinstance(content, str):
            content = content.encode("latin1")  # a Python 2 string
        if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array of objects, not of numbers")
        number = np.dtype(dtype.order + dtype.code)
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r}")
        if len(content) != math.prod(shape) * number.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes of {number}")
        values = np.ndarray(shape, number, bytes(content), order="F" if fortran else "C")
        self.values = values.astype(number.newbyteorder("="), order="C")  # a copy, which torch may write to


def _array_from_buffer(content: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array._fill(content, dtype, shape, order == "F")
    return array


def _number(dtype: object, content: object) -> float | int | bool:
    array = _Array()
    array._fill(content, dtype, ())
    assert array.values is not None
    return array.values.item()


def _encode(text: object, encoding: object) -> bytes:
    """What Python 3 writes for bytes in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """The same for no bytes at all."""
    return b""


_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _number,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "collections.OrderedDict": dict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}
