"""Many videos: the answers of `classify`, in any number of batches, processes and runs, each video once."""

from __future__ import annotations

import csv
import json
import signal
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lightning_csn import many
from lightning_csn.answers import Answers, record_key
from lightning_csn.clip import ClipSpec
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError
from lightning_csn.many import PredictionWriter, Times, Unreadable, VideoBar, classify_many, write_answers
from lightning_csn.module import LitCSN
from lightning_csn.predict import classify

CLIP = ClipSpec(
    frames=4, step=2, fps=None, short_side=40, crop=32, test_crop=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)
NAMES = ["clapping", "jumping", "waving"]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", classes=NAMES, clip=CLIP.to_dict()).eval()


@pytest.fixture(scope="module")
def paths(tmp_path_factory, make_video):
    """Eleven videos of different lengths and sizes, two of them shorter than a clip; number 3 cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(11):
        colour = (1, n / 11, n % 4 / 3)
        make_video(folder / f"{n:02d}.mp4", frames=5 + n, size=(48, 64) if n % 3 else (64, 48), colour=colour)
    (folder / "03.mp4").write_bytes(b"no video")
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture
def shown(model, monkeypatch):
    """The shapes of what the network is shown, in the order of the calls."""
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda clips: calls.append(tuple(clips.shape[:2])) or forward(clips))
    return calls


def one_by_one(model, paths, **options):
    return [classify(model, path, **options) for path in paths if not path.endswith("03.mp4")]


def same(answer, expected):
    probabilities = [probability for _, probability in expected.top]
    return (
        (answer.path, answer.short, answer.timeline) == (expected.path, expected.short, [])
        and [name for name, _ in answer.top] == [name for name, _ in expected.top]
        and [probability for _, probability in answer.top] == pytest.approx(probabilities, abs=1e-6)
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("clips", "crops"), [(3, 1), (1, 3), (10, 1), (2, "full")])
def test_the_answers_are_those_of_one_video_after_the_other(model, paths, clips, crops, workers):
    answers = list(classify_many(model, paths, clips=clips, crops=crops, top=3, workers=workers))
    assert [answer.path for answer in answers] == paths
    assert isinstance(answers[3], Unreadable)
    assert "03.mp4" in answers[3].error
    expected = one_by_one(model, paths, clips=clips, crops=crops, top=3)
    assert sum(answer.short for answer in expected) == 2
    assert all(map(same, answers[:3] + answers[4:], expected))


def test_clips_of_several_videos_share_a_batch(model, paths, shown):
    list(classify_many(model, paths * 4, clips=2, workers=0, views_per_pass=8))
    assert max(shown) == (4, 2)
    assert sum(videos for videos, _ in shown) == 40
    assert len(shown) == 11


def test_whole_pictures_are_shown_alone(model, paths, shown):
    list(classify_many(model, paths, clips=1, crops="full", workers=0))
    assert shown == [(1, 1)] * 10


def test_an_answer_comes_before_the_last_video_is_read(model, paths, shown):
    answers = classify_many(model, paths, clips=1, workers=0, views_per_pass=1)
    assert next(answers).path == paths[0]
    assert len(shown) == 1


def test_a_model_is_left_in_its_mode_while_answers_come(model, paths):
    model.train()
    answers = classify_many(model, paths, clips=1, workers=0)
    next(answers)
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_no_video_and_none_that_can_be_read(model, tmp_path):
    assert list(classify_many(model, [])) == []
    answers = list(classify_many(model, [tmp_path / "a.mp4", tmp_path / "b.mp4"], workers=0))
    assert [answer.path for answer in answers] == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert all(isinstance(answer, Unreadable) for answer in answers)


def test_whatever_answers_for_clips_will_do(paths):
    device = torch.device("cpu")

    class Judge(SimpleNamespace):
        def __call__(self, clips):
            assert clips.dtype == torch.uint8
            return torch.tensor([0.25, 0.75]).expand(len(clips), 2)

    answers = list(classify_many(Judge(clip=CLIP, classes=None, device=device), paths[:2], top=1, workers=0))
    assert [answer.top for answer in answers] == [[("output 1", 0.75)]] * 2


def test_two_crops_are_refused(model, paths):
    with pytest.raises(InputError, match="crops must be one of 1, 3, 10, full, got 2"):
        list(classify_many(model, paths, crops=2))


# ---------------------------------------------------------------- into a file


def test_a_stopped_run_reads_what_is_left(model, paths, shown, tmp_path, monkeypatch):
    write_answers(model, paths, Answers(tmp_path / "whole.jsonl", top=3), clips=1, workers=0)
    shown.clear()
    answers = Answers(tmp_path / "a.jsonl", top=3)
    write = answers.write

    def stop(about, records, rank=0):
        if len(shown) == 5:
            raise KeyboardInterrupt
        write(about, records, rank)

    monkeypatch.setattr(answers, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        write_answers(model, paths, answers, clips=1, workers=0, views_per_pass=1)
    assert not (tmp_path / "a.jsonl").exists()
    shown.clear()
    checked = []
    again = Answers(tmp_path / "a.jsonl", top=3)
    counts = write_answers(model, paths, again, clips=1, workers=0, views_per_pass=1, check=checked.append)
    assert counts == (11, 1, 2)
    assert len(shown) == 6
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert [record["path"] for record in checked] == paths


def test_the_bar_begins_with_what_was_there(model, paths, tmp_path, monkeypatch):
    bars = []
    bar = many.video_bar
    monkeypatch.setattr(many, "video_bar", lambda *args, **kw: bars.append((args, kw)) or bar(*args, **kw))
    half = Answers(tmp_path / "a.csv", top=1)
    about = many.describe_answers(model, clips=1, crops=1, top=1)
    half.write(about, [{"path": paths[0], "top": [{"class": "waving", "probability": 1.0}], "short": False}])
    half.close()
    write_answers(model, paths, Answers(tmp_path / "a.csv", top=1), clips=1, workers=0)
    assert bars == [((11, 1), {"shown": False})]


def test_other_views_or_weights_are_other_answers(model):
    about = many.describe_answers(model, clips=10, crops=1, top=5)
    assert json.loads(json.dumps(about)) == about
    assert many.describe_answers(model, clips=9, crops=1, top=5) != about
    model.exact = True
    assert many.describe_answers(model, clips=10, crops=1, top=5) != about
    model.exact = False
    assert many.describe_answers(model, clips=10, crops=1, top=5) == about
    model.network.get_parameter("head.bias").data += 1
    assert many.describe_answers(model, clips=10, crops=1, top=5) != about


def test_the_shares_of_the_time_are_those_of_processes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(many.time, "perf_counter", lambda: now[0])
    times = Times()
    assert str(times) == "no videos"
    times.began(2)
    for waited, worked in ((3, 1), (1, 3)):
        times.asks()
        now[0] += waited
        times.got({"seconds": 5.0})
        now[0] += worked
        times.answered(4)
    said = "8 videos in 8.0 s, 1 a second; reading 62% of the time of 2 processes, network 50%, waiting for videos 50%"
    assert str(times) == said


# ---------------------------------------------------------------- with a Trainer


def predict(model, paths, out, callbacks=(), batch_size=2):
    data = VideoDataModule(
        predict_videos=paths, clip=CLIP, num_workers=0, test_clips=1, test_crops=1, eval_batch_size=batch_size
    )
    writer = PredictionWriter(out, top=3)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_model_summary=False, callbacks=[writer, *callbacks]
    )
    trainer.predict(model, data, return_predictions=False)
    return writer


class Stop(L.Callback):
    def __init__(self, batch):
        self.batch, self.seen = batch, []

    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.seen += batch["videos"].tolist()
        if batch_idx == self.batch:
            raise RuntimeError("stop")


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_prediction_writes_what_write_answers_does(model, paths, tmp_path, ending):
    files = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    write_answers(model, paths, Answers(files[0], top=3), clips=1, workers=0)
    writer = predict(model, paths, files[1], [VideoBar()])
    one, two = ([flat(record) for record in read(path)] for path in files)
    for each, other in zip(one, two, strict=True):
        assert each == pytest.approx(other, abs=1e-6)
    assert writer.counts == (11, 1, 2)
    assert writer.times.videos == 11


def flat(record):
    """A record without lists, which pytest.approx does not look into."""
    top = {f"{name}_{k}": value for k, each in enumerate(record.get("top", ())) for name, value in each.items()}
    return {**record, **top, "top": None}


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(cell) if name[:4] == "prob" and cell else cell for name, cell in row.items()} for row in rows]


def test_a_stopped_prediction_goes_on_where_it_was(model, paths, tmp_path):
    predict(model, paths, tmp_path / "whole.jsonl", [VideoBar()])
    with pytest.raises(RuntimeError, match="stop"):
        predict(model, paths, tmp_path / "a.jsonl", [VideoBar(), Stop(3)])
    watch = Stop(None)
    predict(model, paths, tmp_path / "a.jsonl", [VideoBar(), watch])
    assert watch.seen == [6, 7, 8, 9, 10]
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "whole.jsonl"]


@pytest.mark.parametrize("way", ["write_answers", "predict"])
def test_a_run_that_was_stopped_at_its_very_end_makes_the_file(model, paths, shown, tmp_path, way):
    readable = paths[:3] + paths[4:]
    found = Answers(tmp_path / "a.jsonl", top=3)
    about = many.describe_answers(model, clips=1, crops=1, top=3)
    records = [{"path": path, "top": [{"class": "waving", "probability": 1.0}], "short": False} for path in readable]
    found.write(about, records)
    found.close()
    if way == "predict":
        predict(model, readable, tmp_path / "a.jsonl", [VideoBar()])
    else:
        write_answers(model, readable, Answers(tmp_path / "a.jsonl", top=3), clips=1, workers=0)
        assert shown == []
    assert read(tmp_path / "a.jsonl") == records


def test_a_prediction_of_part_of_the_videos_has_lines_for_those(model, paths, tmp_path):
    data = VideoDataModule(predict_videos=paths, num_workers=0, test_clips=1, test_crops=1, eval_batch_size=2)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        limit_predict_batches=2,
        callbacks=[PredictionWriter(tmp_path / "a.jsonl")],
    )
    trainer.predict(model, data)
    assert [record["path"] for record in read(tmp_path / "a.jsonl")] == paths[:3] + paths[3:4]


@pytest.mark.parametrize("way", ["write_answers", "predict"])
def test_two_runs_into_one_file_are_refused_before_they_read(model, paths, shown, tmp_path, way):
    (tmp_path / "a.jsonl").write_text("of a run before")
    first = Answers(tmp_path / "a.jsonl", top=3)
    first.take_up(many.describe_answers(model, clips=1, crops=1, top=3))

    def second():
        if way == "predict":
            predict(model, paths, tmp_path / "a.jsonl")
        else:
            write_answers(model, paths, Answers(tmp_path / "a.jsonl", top=3), clips=1, workers=0)

    with pytest.raises(InputError, match="another run is writing these answers"):
        second()
    assert shown == []
    first.close()
    assert (tmp_path / "a.jsonl").read_text() == "of a run before"


SCRIPT = """
import os, signal, sys
import lightning as L
import torch
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.many import PredictionWriter
from lightning_csn.module import LitCSN

out, stop, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)
CLIP = dict(frames=4, step=2, fps=None, short_side=40, crop=32, test_crop=32, mean=[0.5] * 3, std=[0.2] * 3)


class Watch(L.Callback):
    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        numbers = batch["videos"].tolist() + [number for number, _ in batch["unreadable"]]
        with open(f"{out}.seen", "a") as file:
            file.write("".join(f"{number}\\n" for number in numbers))
        if batch_idx == stop:
            os.killpg(0, signal.SIGKILL)


torch.manual_seed(0)
model = LitCSN("ircsn_tiny", classes=["clapping", "jumping", "waving"], clip=CLIP)
data = VideoDataModule(predict_videos=paths, num_workers=0, test_clips=1, test_crops=1, eval_batch_size=1)
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[PredictionWriter(out, top=3), Watch()],
)
trainer.predict(model, data, return_predictions=False)
"""


def test_two_processes_share_the_videos_also_after_they_were_killed(run_script, model, paths, tmp_path):
    """Two processes are killed and two others do the rest: what one process writes that does it all."""

    def seen(out):
        return sorted(map(int, (tmp_path / f"{out}.seen").read_text().split()))

    predict(model, paths, tmp_path / "one.jsonl", batch_size=1)
    run_script(tmp_path, SCRIPT, "two.jsonl", 3, *paths, code=-signal.SIGKILL)
    left = [
        json.loads(line)
        for part in (tmp_path / "two.jsonl.parts").iterdir()
        for line in part.read_text().splitlines()[1:]
    ]
    answered = {paths.index(record_key(record)[0]) for record in left if "error" not in record}
    assert len(answered) >= 2  # of the process that was at its fourth video, of which one cannot be read
    (tmp_path / "two.jsonl.seen").unlink()
    run_script(tmp_path, SCRIPT, "two.jsonl", -1, *paths)
    assert seen("two.jsonl") == [number for number in range(11) if number not in answered]
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert not (tmp_path / "two.jsonl.parts").exists()
