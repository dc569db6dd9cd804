"""Reading weights files: every format by its content, and nothing that could run."""

from __future__ import annotations

import collections
import copyreg
import io
import os
import pickle
import random
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_csn.errors import InputError
from lightning_csn.models.tensors import read_tensors

WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "norm.num_batches_tracked": torch.tensor(7)}
BLOBS = {
    "conv1_w": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "comp_0_spatbn_1_riv": np.linspace(0, 1, 5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path):
    """A file whose name says nothing."""
    return tmp_path / "weights"


def save_torch(content, path, **options):
    with path.open("wb") as file:
        torch.save(content, file, **options)


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], torch.as_tensor(tensor), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------- every format


def test_safetensors(path):
    save_file(WEIGHTS, path, metadata={"format": "pt"})
    found = read_tensors(path)
    assert_same(found.tensors, dict(sorted(WEIGHTS.items())))
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        collections.OrderedDict(WEIGHTS),
        {"state_dict": WEIGHTS, "meta": {"epoch": 58, "config": "model = dict(...)"}},
        {"epoch": 3, "model_state": WEIGHTS, "optimizer_state": {"state": {0: torch.ones(3)}}, "cfg": "TRAIN:\n  A: 1"},
    ],
    ids=["bare", "ordered", "mmaction2", "pyslowfast"],
)
def test_pytorch_files(path, content, zipped):
    save_torch(content, path, _use_new_zipfile_serialization=zipped)
    found = read_tensors(path)
    assert_same(found.tensors, WEIGHTS)
    assert found.metadata.keys() == content.keys() - {"state_dict", "model_state", "optimizer_state", *WEIGHTS}


def test_parameters_come_as_tensors(path):
    save_torch({"weight": torch.nn.Parameter(torch.ones(2))}, path)
    assert not read_tensors(path).tensors["weight"].requires_grad


def test_a_lightning_checkpoint_gives_its_hyper_parameters(path):
    hyper_parameters = {"architecture": "ircsn_tiny", "clip": {"frames": 8, "mean": [0.4, 0.4, 0.4]}}
    content = {"state_dict": WEIGHTS, "hyper_parameters": hyper_parameters, "optimizer_states": [{}], "epoch": 2}
    save_torch(content, path)
    found = read_tensors(path)
    assert_same(found.tensors, WEIGHTS)
    assert found.metadata == {"hyper_parameters": hyper_parameters, "epoch": 2}


@pytest.mark.parametrize("numpy_name", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_in_every_protocol(path, protocol, wrapped, numpy_name):
    written = pickle.dumps({"blobs": BLOBS, "version": 2} if wrapped else BLOBS, protocol)
    here = re.search(rb"numpy\._?core", written)[0]
    if protocol < 4:  # where names of globals are lines; later they have their lengths before them, and stay
        written = written.replace(here, numpy_name)
    path.write_bytes(written)
    found = read_tensors(path)
    assert_same(found.tensors, BLOBS)
    assert found.metadata == ({"version": 2} if wrapped else {})


def python2_array(values, code, order):
    """One array as Python 2's cPickle writes it: 8-bit strings where Python 3 has bytes."""
    raw = values.tobytes()
    shape = b"(" + b"".join(b"K" + bytes([size]) for size in values.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n(U\x02"
        + code
        + b"K\x00K\x01tR(K\x03U\x01"
        + order
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return start + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"


def python2_pickle(*named_arrays):
    items = b"".join(b"U" + bytes([len(name)]) + name + array for name, array in named_arrays)
    return b"\x80\x02}U\x05blobs}(" + items + b"us."


def test_a_caffe2_pickle_of_python_2(path):
    values = np.array([[1.5, -2.25], [3e-8, 65504.0]])
    path.write_bytes(
        python2_pickle(
            (b"little", python2_array(values.astype("<f4"), b"f4", b"<")),
            (b"big", python2_array(values.astype(">f4"), b"f4", b">")),
            (b"model_iter", python2_array(np.array([12], "<i8"), b"i8", b"<")),
            (b"lr", b"G" + struct.pack(">d", 0.01)),
        )
    )
    expected = torch.tensor(values.tolist())
    found = read_tensors(path).tensors
    assert_same(
        found, {"little": expected, "big": expected, "model_iter": torch.tensor([12]), "lr": torch.tensor(0.01)}
    )


def test_arrays_in_fortran_order_scalars_and_empty_arrays(path):
    arrays = {
        "fortran": np.asfortranarray(BLOBS["conv1_w"]),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    path.write_bytes(pickle.dumps({**arrays, "scalar": np.float32(2.5)}, 2))
    assert_same(read_tensors(path).tensors, {**arrays, "scalar": torch.tensor(2.5)})
    path.write_bytes(pickle.dumps(arrays, 5))
    assert_same(read_tensors(path).tensors, arrays)


# ------------------------------------------------------------------------------------------------- code is refused


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "write",
    [
        *(
            lambda content, path, protocol=protocol: path.write_bytes(pickle.dumps(content, protocol))
            for protocol in range(6)
        ),
        save_torch,
        lambda content, path: save_torch(content, path, _use_new_zipfile_serialization=False),
    ],
    ids=[*(f"pickle {protocol}" for protocol in range(6)), "torch zip", "torch legacy"],
)
@pytest.mark.parametrize(
    "hide",
    [
        lambda code: {"w": code},
        lambda code: {"blobs": {"w": np.ones(2, np.float32)}, "cfg": [code]},
        lambda code: {"state_dict": {}, "meta": {"deep": (1, {"er": code})}},
        lambda code: {"blobs": {"w": np.array([code], dtype=object)}},
        lambda code: code,
    ],
)
def test_code_is_named_and_not_run(path, hide, write):
    folder = path.with_name("made")
    write(hide(Code(folder)), path)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: ") as caught:
        read_tensors(path)
    assert not folder.exists()
    # (an array of objects is refused for its numpy names or its type where these come before the code)
    assert f"{os.name}.mkdir" in str(caught.value) or re.search(r"numpy\._?core|of objects|'O8'", str(caught.value))


def call(module, name, argument):
    """A pickle, protocol 2, that calls a global with one string."""
    return (
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X" + struct.pack("<i", len(argument)) + argument + b"\x85R."
    )


def stack_global(module, name, argument):
    """The same in protocol 4, where a name may have dots in it."""
    strings = b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module.encode(), name.encode()))
    return b"\x80\x04" + strings + b"\x93X" + struct.pack("<i", len(argument)) + argument + b"\x85R."


TRICKS = {
    "another module's dtype": ("evil", "dtype"),
    "another module's ndarray": ("numpy.ma", "ndarray"),
    "another module's _reconstruct": ("copyreg", "_reconstructor"),
    "getattr": ("builtins", "getattr"),
    "python 2's eval": ("__builtin__", "eval"),
    "eval": ("builtins", "eval"),
    "a module that numpy imports": ("numpy.core.multiarray", "os.system"),
    "the same, split elsewhere": ("numpy.core", "multiarray.os.system"),
    "globals of a function": ("numpy.core.multiarray", "_reconstruct.__globals__"),
    "a base class": ("numpy", "dtype.__class__.__base__.__subclasses__"),
    "dtype in our own file": ("lightning_csn.models.tensors", "pickle.loads"),
    "numpy's loader": ("numpy", "load"),
    "numpy's exec": ("numpy.testing._private.utils", "runstring"),
    "the codec beside the allowed one": ("_codecs", "decode"),
    "an allowed name with dots": ("collections", "OrderedDict.fromkeys"),
    "an allowed name with a space": ("numpy ", "dtype"),
}


@pytest.mark.parametrize("write", [call, stack_global])
@pytest.mark.parametrize(("module", "name"), TRICKS.values(), ids=TRICKS)
def test_names_that_look_allowed_are_not(path, module, name, write):
    path.write_bytes(write(module, name, b"touch made"))
    with pytest.raises(InputError, match=rf"refused: .* {re.escape(module)}\.{re.escape(name)}, which is code"):
        read_tensors(path)


ODD = {
    "INST": (b"(S'touch made'\nios\nsystem\n.", r"os\.system, which is code"),
    "OBJ": (b"\x80\x02(cos\nsystem\nX\x0a\x00\x00\x00touch madeo.", r"os\.system, which is code"),
    "NEWOBJ": (b"\x80\x02cos\nsystem\n)\x81.", r"os\.system, which is code"),
    "NEWOBJ of an allowed name": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ class argument"),
    "persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent"),
    "state put into a function": (
        b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00makeK\x01sb.",
        "may not change a function",
    ),
    "slots put into a function": (
        b"\x80\x02cnumpy\ndtype\nN}X\x04\x00\x00\x00makeK\x01s\x86b.",
        "may not change a function",
    ),
    "state put into an OrderedDict": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
        "no attribute '__dict__'",
    ),
    "a dtype of objects": (b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.", "an array of 'O8', not of numbers"),
    "a dtype of fields": (
        b"\x80\x02cnumpy\ndtype\n](X\x01\x00\x00\x00ae\x85R.",
        r"an array of \['a'\], not of numbers",
    ),
    "a dtype of huge strings": (b"\x80\x02cnumpy\ndtype\nX\x0a\x00\x00\x00S999999999\x85R.", "an array of 'S9999"),
    "a codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "the encoding 'rot13'"),
    "a byte order": (
        python2_pickle((b"w", python2_array(np.ones(3, "<f4"), b"f4", b"!"))),
        "unknown byte order '!'",
    ),
    "an array larger than its bytes": (
        python2_pickle((b"w", python2_array(np.ones(3, "<f4"), b"f8", b"<"))),
        r"shape \(3,\) with 12 bytes of float64",
    ),
    "an array smaller than its bytes": (
        python2_pickle((b"w", python2_array(np.ones(3, "<f4"), b"f2", b"<"))),
        r"shape \(3,\) with 12 bytes of float16",
    ),
    "an array of negative size": (
        pickle.dumps({"w": np.ones((2, 2), np.float32)}, 2).replace(
            b"K\x02K\x02\x86", b"J\xfe\xff\xff\xffJ\xfe\xff\xff\xff\x86"
        ),
        r"shape \(-2, -2\)",
    ),
}


@pytest.mark.parametrize(("content", "message"), ODD.values(), ids=ODD)
def test_pickles_that_no_writer_of_weights_makes(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_tensors(path)
    path.write_bytes(pickle.dumps(BLOBS, 2))
    assert_same(read_tensors(path).tensors, BLOBS)  # nothing was changed for the next file


def test_registered_extensions_are_asked_about_too(path):
    copyreg.add_extension("os", "system", 240)
    try:
        path.write_bytes(b"\x80\x02\x82\xf0X\x0a\x00\x00\x00touch made\x85R.")
        with pytest.raises(InputError, match=r"os\.system, which is code"):
            read_tensors(path)
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_a_pytorch_file_that_is_a_tar_archive_too(path):
    save_torch(WEIGHTS, path, _use_new_zipfile_serialization=False)
    name = path.read_bytes()[:40]
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x" * 40), io.BytesIO())
    header = bytearray(path.read_bytes())
    header[:40] = name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    assert tarfile.is_tarfile(path)
    with pytest.raises(InputError, match="tar archive too"):
        read_tensors(path)


# ------------------------------------------------------------------------------------------- what is not a weights file


def zip_of(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return file.getvalue()


ACCIDENTS = {
    "empty": (b"", "file is empty; delete it and download it again"),
    "a web page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "a web page, not weights"),
    "an error in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page, not weights"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB or HDF5 file, which is not read here"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "MATLAB or HDF5 file, which is not read here"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "archive; unpack it"),
    "zip": (zip_of(readme_txt="hello"), "a zip archive without PyTorch weights; unpack it"),
    "TorchScript": (zip_of(a__data_pkl=b"", a__constants_pkl=b""), "TorchScript program, which is code"),
    "text": (b"hello world, this is text", "not a weights file .* starts with b'hello world, thi'"),
    "JSON": (b'{"a": 1}', "not a weights file"),
    "a list": (pickle.dumps([1, 2], 2), "holds a list, not tensors by name"),
    "an empty dict": (pickle.dumps({}, 2), "holds no tensors"),
    "other entries": (
        pickle.dumps({"epoch": 3, "net": {"w": 1}}, 2),
        "belongs at 'net', not a dict; .* 'epoch', 'net'",
    ),
    "numbered": (pickle.dumps({0: 1.5}, 2), "belongs at 0, not a float"),
}


@pytest.mark.parametrize(("content", "message"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_accidents_are_told_apart(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_pytorch_file_that_its_safe_loader_cannot_read(path):
    save_torch(WEIGHTS, path, pickle_protocol=4)
    with pytest.raises(InputError, match=r"not for PyTorch's safe loader \(Unsupported operand 149\)"):
        read_tensors(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth: cannot be read: No such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)


FORMATS = {
    "safetensors": lambda path: save_file(WEIGHTS, path),
    "zip": lambda path: save_torch(WEIGHTS, path),
    "legacy": lambda path: save_torch(WEIGHTS, path, _use_new_zipfile_serialization=False),
    "caffe2": lambda path: path.write_bytes(pickle.dumps({"blobs": BLOBS}, 2)),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_a_file_that_ends_early_is_refused_wherever_it_ends(path, write):
    write(path)
    whole = path.read_bytes()
    for length in {0, 1, 8, 9, len(whole) - 1, *range(2, len(whole), max(len(whole) // 40, 1))}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: "):
            read_tensors(path)


def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(path):
    whole = pickle.dumps({"blobs": BLOBS, "lr": 0.1}, 2)
    chance = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[chance.randrange(2, len(whole))] = chance.choice([c for c in range(256) if c != ord("r")])
        path.write_bytes(damaged)  # (an 'r' may ask for a memo of gigabytes, which Python grants)
        try:
            read_tensors(path)
        except InputError:
            refused += 1
    assert 100 < refused < 500
