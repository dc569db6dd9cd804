"""What tests share: small videos whose frame n shows the number n, as a grid of bright and dark cells that codecs keep,
and folders of them; tiny clips, models, batches and loaders of noise; a quiet Trainer; a runner of scripts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small are slower on two; and for what tests start

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # for the kernels; Triton reads it when it is first imported
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default; unset, Triton 3.9 warns, an error here
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch.use_deterministic_algorithms asks for

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, and so do programs that they start

END_TOGETHER = """
import gc
import torch.distributed
if torch.distributed.is_initialized():  # as lightning_csn.processes.leave, with none that still talks to one that left
    torch.distributed.barrier()
    for name in [name for name in globals() if name[:2] != "__" and name not in ("gc", "torch")]:
        del globals()[name]  # what holds the group, as a parallel network, keeps its threads beyond the end of Python
    gc.collect()
    torch.distributed.destroy_process_group()
"""

ROWS, COLUMNS = 2, 4  # of the grid: eight cells, numbers 0 to 255
DARK, BRIGHT = 40, 215
COLOURS = {"clapping": (1, 0, 0), "jumping": (0, 1, 0), "waving": (0, 0, 1)}  # one a class, so that a network can learn


def number_image(number: int, height: int, width: int, colour: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """uint8 (H, W, 3): bit i of `number` lights cell i, counted from the top left, row by row."""
    bits = [(number >> i) & 1 for i in range(ROWS * COLUMNS)]
    cells = np.array(bits, dtype=np.float64).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    lit = cells[rows][:, columns]
    return (DARK + (BRIGHT - DARK) * lit[:, :, None] * np.array(colour)).astype(np.uint8)


def number_shown(frame: torch.Tensor) -> int:
    """The number that a frame, uint8 (H, W, C), shows; its brightest channel counts, so that any colour will do."""
    height, width = frame.shape[:2]
    bright = frame.amax(-1)
    number = 0
    for i in range(ROWS * COLUMNS):
        y = (2 * (i // COLUMNS) + 1) * height // (2 * ROWS)
        x = (2 * (i % COLUMNS) + 1) * width // (2 * COLUMNS)
        number |= int(bright[y, x] > (DARK + BRIGHT) // 2) << i
    return number


def touch(root: Path, *names: str) -> Path:
    """Empty files of these names in a folder, which is given back."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, text: str) -> Path:
    """A file with this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def found(collection: Any, root: Path, split: str) -> list[tuple[Any, ...]]:
    """Path and name of the label, or names of several, of each sample; with its part, where it is one."""
    classes = collection.classes
    answers: list[tuple[Any, ...]] = []
    for number, sample in enumerate(collection.samples[split]):
        assert sample.video == number
        label = sample.label
        if isinstance(label, tuple):
            name: object = tuple(classes[i] for i in label)
        else:
            name = classes[label] if label >= 0 else None
        path = Path(sample.path).relative_to(root).as_posix()
        answers.append((path, name) if sample.part is None else (path, name, sample.part))
    return answers


def write_video(
    path: Path,
    *,
    frames: int,
    size: tuple[int, int],
    rate: int | Fraction,
    codec: str,
    container: str | None,
    pix_fmt: str | None,
    colour: tuple[float, float, float],
    pixel_aspect: Fraction | None,
    audio: bool,
    options: dict[str, str],
    container_options: dict[str, str],
) -> None:
    import av  # here, so that the tests of networks run where it is not installed

    with av.open(str(path), "w", format=container, options=container_options) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.thread_count = 1
        if pix_fmt is not None:
            stream.pix_fmt = pix_fmt
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        sound: Any = output.add_stream("aac", rate=8000, layout="mono") if audio else None
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(number_image(number, *size, colour), format="rgb24")
            output.mux(stream.encode(image))
        output.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            output.mux(sound.encode(silence))
            output.mux(sound.encode(None))


def probe(path: str | Path) -> Any:
    """What is known of a video."""
    from lightning_csn.data.video import Video

    with Video(path) as video:
        return video.info


def read_frames(path: str | Path, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Frames of a video, uint8 (T, H, W, C)."""
    from lightning_csn.data.video import Video

    with Video(path) as video:
        return video.frames(numbers, size=size)


def decode_all(path: Path) -> torch.Tensor:
    """What Video is measured by: every frame from the first on, uint8 (T, H, W, C)."""
    import av

    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(images))


def remux(source: Path, target: Path, change: Callable[[int, Any], Sequence[Any]]) -> None:
    """Copy packets, of which `change(position, packet)` makes a list of packets."""
    import av

    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for i, original in enumerate(packet for packet in before.demux(video=0) if packet.size):
            for packet in change(i, original):
                packet.stream = stream
                after.mux(packet)


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a video whose frame n shows n (modulo 256) and returns its path; each kind is encoded once a session.

    size: (height, width). colour: of the lit cells, red, green, blue on the scale 0 to 1. options: of the encoder;
    container_options: of the file format. The container follows the path's ending unless `container` names one.
    """
    kept: dict[tuple[Any, ...], Path] = {}
    folder = tmp_path_factory.mktemp("encoded")

    def make(
        path: str | Path,
        *,
        frames: int = 20,
        size: tuple[int, int] = (48, 64),
        rate: int | Fraction = 25,
        codec: str = "libx264",
        container: str | None = None,
        pix_fmt: str | None = None,
        colour: tuple[float, float, float] = (1, 1, 1),
        pixel_aspect: Fraction | None = None,
        audio: bool = False,
        options: dict[str, str] | None = None,
        container_options: dict[str, str] | None = None,
    ) -> Path:
        path = Path(path)
        options = dict(options or {})
        container_options = dict(container_options or {})
        if codec in ("libx264", "libx265"):
            options.setdefault("preset", "ultrafast")
            pix_fmt = pix_fmt or "yuv420p"
        if codec == "libx265":
            options.setdefault("x265-params", "log-level=none:pools=1:frame-threads=1")
        kind = (path.suffix, frames, size, rate, codec, container, pix_fmt, colour, pixel_aspect, audio)
        kind += (*sorted(options.items()), *sorted(container_options.items()))
        if kind not in kept:
            encoded = folder / f"{len(kept)}{path.suffix}"
            write_video(
                encoded,
                frames=frames,
                size=size,
                rate=rate,
                codec=codec,
                container=container,
                pix_fmt=pix_fmt,
                colour=colour,
                pixel_aspect=pixel_aspect,
                audio=audio,
                options=options,
                container_options=container_options,
            )
            kept[kind] = encoded
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept[kind], path)
        return path

    return make


@pytest.fixture(scope="session")
def read_number() -> Callable[[torch.Tensor], int]:
    """The number that a frame of `make_video` shows: uint8 (H, W, C) -> 0 to 255."""
    return number_shown


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Classes clapping, jumping, waving of three videos each, `<class>/<class>_0.mp4` to 2; leave as it is."""
    root = tmp_path_factory.mktemp("videos")
    for name, colour in COLOURS.items():
        for i in range(3):
            make_video(root / name / f"{name}_{i}.mp4", frames=12 + 4 * i, colour=colour)
    return root


@pytest.fixture(scope="session")
def split_folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """The classes of `video_folder` under train (4 videos a class), val (2) and test (3); leave as it is."""
    root = tmp_path_factory.mktemp("split")
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name, colour in COLOURS.items():
            for i in range(count):
                make_video(root / split / name / f"{split}_{name}_{i}.mp4", frames=12 + 4 * (i % 3), colour=colour)
    return root


@pytest.fixture(scope="session")
def entry_of() -> Callable[..., Any]:
    """What an index holds of a file: a good one of two seconds, but for these values of its VideoInfo; or an error."""
    from lightning_csn.data.index import Entry
    from lightning_csn.data.video_info import VideoInfo

    good = {"num_frames": 50, "fps": 25.0, "height": 48, "width": 64, "codec": "h264"}

    def make(path: str, info: dict[str, Any] | None = None, *, error: str | None = None, **values: Any) -> Entry:
        found = VideoInfo(**good | (info or {})) if error is None else None
        return Entry(path=path, bytes=1, mtime_ns=1, info=found, error=error, **values)

    return make


@pytest.fixture(scope="session")
def report_of(entry_of: Callable[..., Any]) -> Callable[..., Any]:
    """What is said of a collection: split -> (path, label) or (path, label, part) of each sample, and its `entries` by
    their paths; files without one are good.
    """
    from lightning_csn.data.examine import examine
    from lightning_csn.data.samples import Collection, Sample

    def make(
        given: dict[str, list[Any]],
        copies: Sequence[Sequence[str]] = (),
        *,
        classes: Sequence[str] = ("run", "walk"),
        missing: tuple[tuple[str, str], ...] = (),
        clip: Any = None,
        limit: float = 0.1,
        frames_fps: float | None = None,
        **entries: Any,
    ) -> Any:
        samples = {
            split: [Sample(path, label, number, *part) for number, (path, label, *part) in enumerate(there)]
            for split, there in given.items()
        }
        every = [sample for there in samples.values() for sample in there]
        several = any(isinstance(sample.label, tuple) for sample in every)
        found = {sample.path: entry_of(sample.path) for sample in every} | entries
        collection = Collection(samples, list(classes), "test", several, missing)
        return examine(collection, found, copies, clip=clip, limit=limit, frames_fps=frames_fps)

    return make


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Any]:
    """A report on `count` videos to train on and half as many to validate on, some with problems and names that a page
    must not take for its own; sampling: of the clip, None for no clip.
    """
    from lightning_csn.clip import ClipSpec
    from lightning_csn.data.examine import examine
    from lightning_csn.data.index import Entry
    from lightning_csn.data.samples import Collection, Sample
    from lightning_csn.data.video_info import VideoInfo

    long = "a_very_long_name_of_a_class_without_any_blank_where_a_browser_could_break_the_line"
    evil = "<script>alert('x')</script>&\"'.mp4"

    def make(
        count: int = 40, classes: Sequence[str] = ("run", "walk <b>&amp;", long), sampling: str | None = "clip"
    ) -> Any:
        samples: dict[str, list[Any]] = {}
        entries: dict[str, Any] = {}
        for split, number in (("train", count), ("val", count // 2)):
            samples[split] = []
            for i in range(number):
                path = f"/data/{split}/{i:03}.mp4" if i else f"/data/{split}/{evil}"
                samples[split].append(Sample(path, i % len(classes), i))
                of = VideoInfo(
                    num_frames=25 + 5 * i, fps=25.0, height=48, width=64, codec="h264", rotation=90 * (i % 2)
                )
                entries[path] = Entry(path=path, bytes=1000, mtime_ns=1, info=of)
        broken = "/data/train/001.mp4"
        if broken in entries:
            entries[broken] = Entry(path=broken, bytes=10, mtime_ns=1, error=f"{broken}: the file is empty")
            entries["/data/train/002.mp4"] = None
        copies = [["/data/train/003.mp4", "/data/val/004.mp4"]]
        found = Collection(samples, list(classes), "a folder per class in train and val", False)
        half = (0.5, 0.5, 0.5)
        sizes = {"short_side": 64, "crop": 48, "test_crop": 64}
        clip = ClipSpec(frames=8, step=5, fps=25, **sizes, mean=half, std=half, sampling=sampling) if sampling else None
        return examine(found, entries, copies, root="/data", clip=clip)

    return make


@pytest.fixture(scope="session")
def make_trainer_in() -> Callable[..., Any]:
    """As `make_trainer`, with the folder that it may write into."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    def make(folder: str | Path, **options: Any) -> L.Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in options.get("callbacks", ())),
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
        }
        return L.Trainer(**(quiet | options))

    return make


@pytest.fixture
def make_trainer(make_trainer_in: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A Trainer on the CPU that says nothing, and keeps checkpoints only where a callback for them is given."""
    return partial(make_trainer_in, tmp_path)


@pytest.fixture(scope="session")
def tiny_clip() -> dict[str, Any]:
    """What clips of two frames of 16 pixels look like, the smallest that a network takes."""
    sizes = {"frames": 2, "step": 1, "fps": None, "short_side": 16, "crop": 16, "test_crop": 16}
    return sizes | {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture(scope="session")
def tiny_model(tiny_clip: dict[str, Any]) -> Callable[..., Any]:
    """A LitCSN, or of another kind, for clips as small as these and four classes; of one seed, the same weights.

    sure: what those of the head are multiplied by, for a network whose answers differ.
    """
    from lightning_csn.module import LitCSN

    def make(kind: type[LitCSN] = LitCSN, *, seed: int = 0, sure: float = 1, **options: Any) -> LitCSN:
        torch.manual_seed(seed)
        count = {} if options.get("classes") else {"num_classes": 4}
        model = kind("ircsn_tiny", **({"clip": tiny_clip, "lr": 0.05, "schedule": "constant"} | count | options))
        with torch.no_grad():
            model.network.head.weight *= sure
        return model

    return make


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network, in a folder, for the classes of `video_folder` and clips of four frames, 32 x 32."""
    from lightning_csn.models import checkpoints
    from lightning_csn.models.network import create_network

    sizes = {"frames": 4, "step": 1, "fps": None, "short_side": 32, "crop": 32, "test_crop": 32}
    clip = sizes | {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    torch.manual_seed(0)
    network = create_network("ircsn_tiny", num_classes=len(COLOURS))
    record = checkpoints.Checkpoint(
        architecture="ircsn_tiny", num_classes=network.num_classes, classes=list(COLOURS), clip=clip
    )
    return checkpoints.save(network, record, tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def tiny_batch(tiny_clip: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A batch of noise for `tiny_model` with these labels, of one seed the same."""

    def make(labels: Sequence[int] = (0, 1, 2, 3), seed: int = 0, views: int = 1) -> dict[str, Any]:
        size = (len(labels), views, 3, tiny_clip["frames"], tiny_clip["crop"], tiny_clip["crop"])
        generator = torch.Generator().manual_seed(seed)
        return {
            "clips": torch.randint(256, size, generator=generator, dtype=torch.uint8),
            "labels": torch.tensor(labels),
            "videos": torch.arange(len(labels)) + len(labels) * seed,
            "short": torch.zeros(len(labels), dtype=torch.bool),
            "unreadable": [],
        }

    return make


@pytest.fixture(scope="session")
def tiny_loader(tiny_batch: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """A loader of these batches; of two with the four labels, if none are given."""

    def make(*batches: dict[str, Any]) -> torch.utils.data.DataLoader[Any]:
        given: Any = batches or (tiny_batch(), tiny_batch([3, 2, 1, 0], seed=1))
        return torch.utils.data.DataLoader(list(given), batch_size=None)

    return make


@pytest.fixture(scope="session")
def watch_rates() -> Callable[[], Any]:
    """Makes a callback whose `rates` are those of the first parameters at each step of a training."""
    import lightning as L

    class Rates(L.Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    return Rates


@pytest.fixture(scope="session")
def states_equal() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]:
    """Whether two state dicts hold the same, to the bit."""
    return lambda one, other: one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """Runs a script that may start further processes, as Lightning does, in a folder; gives what all of them said.

    code: how it has to end. It leads a group of processes, so that one of them can kill them all.
    """
    import lightning_csn

    outer = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment["PYTHONPATH"] = str(Path(lightning_csn.__file__).parents[1])
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the name of the machine may stand for

    def run(folder: Path, script: str, *arguments: object, code: int = 0) -> str:
        (folder / "script.py").write_text(script + END_TOGETHER)
        with subprocess.Popen(
            [sys.executable, "script.py", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=1200)
            except BaseException:  # none of them goes on beside other tests
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == code, said
        return said

    return run
