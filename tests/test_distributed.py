"""Two processes give the numbers of one, to the last digit, and neither waits for the other for ever."""

import json
import signal

import numpy as np
import pytest

CASES = {  # number of videos, and those that cannot be read
    "even": (6, []),
    "five": (5, []),
    "seven": (7, []),
    "five, two unreadable": (5, [1, 2]),
    "seven, all of one process unreadable": (7, [1, 3, 5]),
    "two, one unreadable": (2, [1]),
    "one for two processes": (1, []),
}

FILES = {  # the same of video files, read by VideoDataModule; their scores are written
    "5 files": (5, []),
    "7 files": (7, []),
    "33 files": (33, []),
    "5 files, two unreadable": (5, [1, 2]),
    "7 files, all of one process unreadable": (7, [1, 3, 5]),
    "33 files, four unreadable": (33, [0, 8, 19, 32]),
}
STOPPED = "33 files, four unreadable"

SCRIPT = '''
import json, os, signal, sys
import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.ema import EMA
from lightning_csn.metrics import VideoScores
from lightning_csn.module import LitCSN
from lightning_csn.scores_writer import ScoresWriter

folder, devices, cases, files, stopped = sys.argv[1], int(sys.argv[2]), *map(json.loads, sys.argv[3:])
torch.set_num_threads(1)
CLIP = dict(frames=4, step=2, fps=None, short_side=32, crop=32, test_crop=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
results = {}


def make_batch(numbers, unreadable=(), views=3):
    clips = [
        torch.randint(256, (views, 3, 4, 32, 32), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        for n in numbers
    ]
    return {
        "clips": torch.stack(clips) if clips else torch.empty(0, views, 3, 4, 32, 32, dtype=torch.uint8),
        "labels": torch.tensor([n % 4 for n in numbers], dtype=torch.long),
        "videos": torch.tensor(list(numbers), dtype=torch.long),
        "short": torch.tensor([n % 3 == 1 for n in numbers], dtype=torch.bool),
        "unreadable": [(n, f"{n}.mp4: no such file") for n in unreadable],
    }


def eval_loader(count, unreadable):  # Lightning's own sampler adds repeats, so that the processes have equal parts
    batches = [make_batch([], [n]) if n in unreadable else make_batch([n]) for n in range(count)]
    return DataLoader(batches, batch_size=1, collate_fn=lambda batches: batches[0])


class AloneWithVideos(L.Callback):
    """Scores of which only process 0 has seen anything."""

    def on_test_end(self, trainer, module):
        for name, labels in (("alone", torch.tensor([2])), ("alone, several labels", torch.tensor([[1, 0, 1]]))):
            scores = VideoScores(3, multi_label=labels.ndim == 2)
            if trainer.global_rank == 0:
                scores.update(torch.tensor([4]), labels, torch.tensor([[0.5, 0.25, 0.25]]), [5], blank=[4])
            results[name] = {name: value.item() for name, value in scores.compute().items()}


class StatisticsApart(L.Callback):
    """How far the BatchNorm statistics of the processes are apart at the end of every training batch and validation."""

    def on_train_batch_end(self, trainer, module, *args):
        results.setdefault("apart after training", []).append(apart(trainer, module.network.stem.norm.running_mean))

    def on_validation_end(self, trainer, module):
        results.setdefault("apart after validation", []).append(apart(trainer, module.network.stem.norm.running_mean))


class AveragesApart(L.Callback):
    """How far the averaged statistics of the processes are apart in a validation."""

    def __init__(self, name):
        self.name = name

    def on_validation_batch_end(self, trainer, module, *args):
        results[self.name] = apart(trainer, module.network.stem.norm.running_mean)


def apart(trainer, tensor):
    return (trainer.strategy.broadcast(tensor) - tensor).abs().max().item()


class Watch(L.Callback):
    """Which videos this process sees; it ends, as it is told, at the tenth batch."""

    def __init__(self, end=None):
        self.seen, self.end = [], end

    def on_test_batch_start(self, trainer, module, batch, batch_idx, *args):
        self.seen += batch["videos"].tolist()
        if batch_idx == 9 and self.end is not None:
            self.end()


class Stopped(Exception):
    pass


class DyingWriter(ScoresWriter):
    """Writes nothing any more when a test stops, as after a SIGKILL."""

    def on_exception(self, *args):
        pass


def stop():
    raise Stopped


class Naive(L.LightningModule):
    """Answers 1, and has torchmetrics count how often that is right, as Lightning's pages show it."""

    def __init__(self):
        super().__init__()
        self.weight, self.top1 = torch.nn.Parameter(torch.zeros(1)), MulticlassAccuracy(4, average="micro")

    def test_step(self, batch, batch_idx):
        self.top1(torch.ones_like(batch["labels"]), batch["labels"])
        self.log("test_top1", self.top1, batch_size=1)


class Counted(Naive):
    """The same, of VideoScores."""

    def test_step(self, batch, batch_idx):
        answers = torch.eye(4)[torch.ones_like(batch["labels"])]
        self.scores.update(batch["videos"], batch["labels"], answers)

    def on_test_start(self):
        self.scores = VideoScores(4)

    def on_test_epoch_end(self):
        self.log("test_top1", float(self.scores.compute()["top1"]), reduce_fx="max", sync_dist=True)


def make_trainer(devices=devices, **options):
    return L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        default_root_dir=folder, **options,
    )


def test_files(name, path, watch=None, trainer=None, writer=ScoresWriter):
    data = VideoDataModule(
        test_list=f"{folder}/{name}.txt", num_workers=0, test_clips=2, test_crops=1, eval_batch_size=1,
        unreadable_limit=1.0,
    )
    callbacks = [writer(f"{folder}/{path}.npz", videos_per_part=2), watch or Watch()]
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP)
    return make_trainer(**(trainer or {}), callbacks=callbacks).test(model, data, verbose=False)[0]


if devices == 2 and "LOCAL_RANK" not in os.environ:  # one process, before it makes another, leaves a part of a test
    try:
        test_files(stopped, "from one to two", Watch(stop), {"devices": 1}, DyingWriter)
    except Stopped:
        pass

torch.manual_seed(0)
model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP)
for name, (count, unreadable) in cases.items():
    trainer = make_trainer(callbacks=[AloneWithVideos()] if name == "even" else [])
    results[name] = trainer.test(model, eval_loader(count, unreadable), verbose=False)[0]

for answers in (Naive(), Counted()):
    results[type(answers).__name__] = make_trainer().test(answers, eval_loader(5, []), verbose=False)[0]["test_top1"]
for name in files:
    results[name] = test_files(name, f"{name}-{devices}")
if devices == 2:
    watch = Watch()
    results["from one to two"] = test_files(stopped, "from one to two", watch)
    results["seen by two"] = watch.seen
else:  # where the two were killed
    watch = Watch()
    results["from two to one"] = test_files(stopped, "from two to one", watch)
    results["seen by one"] = watch.seen

checkpoint = folder + "/two.ckpt"
if devices == 2:  # in each step another process has nothing to learn from
    def train_loader(rank):
        full, empty = make_batch([10 + rank, 12], views=1), make_batch([], [8], views=1)
        return DataLoader([full, empty] if rank == 0 else [empty, full], batch_size=None)

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return train_loader(self.trainer.global_rank)

    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP, lr=0.1, schedule="constant")
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    trainer = make_trainer(max_steps=2, use_distributed_sampler=False, callbacks=[StatisticsApart()])
    trainer.fit(model, Data())
    trainer.save_checkpoint(checkpoint)
    end = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    results["learnt"] = (end - start).abs().max().item()
    results["apart"] = apart(trainer, end)
    results["unreadable in training"] = trainer.callback_metrics["train_unreadable"].item()

    # Validation amid the accumulation of gradients, when DDP does not level the statistics.
    trainer = make_trainer(
        max_epochs=1, accumulate_grad_batches=2, val_check_interval=1, use_distributed_sampler=False,
        callbacks=[StatisticsApart()],
    )
    both_learn = DataLoader([make_batch([n + trainer.global_rank, n + 2], views=1) for n in (20, 30)], batch_size=None)
    results.pop("apart after training")
    trainer.fit(LitCSN("ircsn_tiny", num_classes=4, clip=CLIP), both_learn, eval_loader(2, []))
    for name, averaging in (("averages apart", EMA(0.9)), ("averages apart in Lightning", EMAWeightAveraging())):
        trainer = make_trainer(
            max_epochs=1, accumulate_grad_batches=2, val_check_interval=3, use_distributed_sampler=False,
            callbacks=[averaging, AveragesApart(name)],
        )
        batches = [make_batch([n + trainer.global_rank, n + 2], views=1) for n in (20, 30, 40, 50)]
        learn = DataLoader(batches, batch_size=None)
        trainer.fit(LitCSN("ircsn_tiny", num_classes=4, clip=CLIP), learn, eval_loader(2, []))
else:
    model = LitCSN.load_from_checkpoint(checkpoint)
trainer = make_trainer()
results["after training"] = trainer.test(model, eval_loader(5, []), verbose=False)[0]
with open(f"{folder}/{devices}-{trainer.global_rank}.json", "w") as file:
    json.dump(results, file)


def kill_both():  # at the tenth batch of both: left alone, the first to die has Lightning kill the other wherever it is
    torch.distributed.barrier()
    os.killpg(0, signal.SIGKILL)


if devices == 2:
    test_files(stopped, "from two to one", Watch(kill_both))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video):
    """Where the script runs, with a list file of each of FILES."""
    folder = tmp_path_factory.mktemp("distributed")
    for n in range(33):
        make_video(folder / f"{n}.mp4", frames=5 + n % 4, size=(32, 40), colour=(1, n / 33, n % 4 / 3))
    (folder / "damaged.mp4").write_bytes(b"no video")
    for name, (count, unreadable) in FILES.items():
        lines = (f"{'damaged' if n in unreadable else n}.mp4 {n % 4}\n" for n in range(count))
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def results(run_script, folder):
    """Results of two processes (of rank 0 and of rank 1) and then of one, and what the two had to say."""
    cases = list(map(json.dumps, (CASES, FILES, STOPPED)))
    said = run_script(folder, SCRIPT, folder, 2, *cases, code=-signal.SIGKILL)
    run_script(folder, SCRIPT, folder, 1, *cases)
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("2-0", "2-1", "1-0")}
    return read["2-0"], read["2-1"], read["1-0"], said


@pytest.mark.parametrize("case", [*CASES, *FILES, "alone", "alone, several labels"])
def test_two_processes_give_the_numbers_of_one(results, case):
    first, second, single, _ = results
    assert repr(first[case]) == repr(second[case]) == repr(single[case])


def test_trap_lightnings_own_way_counts_the_repeats_of_its_sampler(results):
    first, second, single, _ = results  # the first of five videos, wrong, is seen by both processes
    assert first["Naive"] == second["Naive"] == pytest.approx(1 / 6)
    assert single["Naive"] == pytest.approx(1 / 5)
    assert first["Counted"] == second["Counted"] == single["Counted"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("case", [*CASES, *FILES])
def test_every_video_is_counted_once(results, case):
    count, unreadable = (CASES | FILES)[case]
    found = results[0][case]
    assert (found["test_videos"], found["test_unreadable"]) == (count - len(unreadable), len(unreadable))
    short = set(range(1, count, 3)) if case in CASES else {n for n in range(count) if 5 + n % 4 < 7}
    assert found["test_short"] == len(short - set(unreadable))


@pytest.mark.parametrize("case", FILES)
def test_two_processes_write_the_scores_of_one(results, folder, case):
    with np.load(folder / f"{case}-2.npz") as two, np.load(folder / f"{case}-1.npz") as one:
        assert two.files == one.files
        for name in two.files:
            assert np.array_equal(two[name], one[name]), name


def test_a_stopped_test_of_one_process_goes_on_with_two(results):
    first, second, single, _ = results
    assert repr(first["from one to two"]) == repr(second["from one to two"]) == repr(single[STOPPED])
    seen = first["seen by two"] + second["seen by two"]
    assert sorted(seen) == [n for n in range(9, 33) if n not in FILES[STOPPED][1]]  # 1 to 7 are in parts of two


def test_a_killed_test_of_two_processes_goes_on_with_one(results):
    *_, single, _ = results
    assert repr(single["from two to one"]) == repr(single[STOPPED])
    assert 0 < len(single["seen by one"]) < 33 - 4 - 10


def test_training_goes_on_where_one_process_has_nothing_readable(results):
    first, second, *_ = results
    assert first["learnt"] > 0
    assert first["apart"] == second["apart"] == 0
    assert first["unreadable in training"] == 2


def test_a_test_right_after_training_is_of_the_network_that_the_checkpoint_holds(results):
    first, second, single, _ = results
    assert first["after training"] == second["after training"] == single["after training"]


def test_a_validation_is_of_one_network_on_all_processes(results):
    _, second, *_ = results
    assert all(apart > 0 for apart in second["apart after training"])  # what makes the test worth having
    assert second["apart after validation"] == [0, 0]


def test_a_validation_of_averages_is_of_one_network_on_all_processes(results):
    _, second, *_ = results
    assert second["averages apart in Lightning"] > 0
    assert second["averages apart"] == 0


def test_a_test_is_printed_and_unreadable_videos_are_listed_once(results):
    said = results[-1]
    assert said.count("of 3 videos (2 unreadable, left out; 1 shorter than a clip)") == 1
    assert said.count("  video 5: 5.mp4: no such file") == 1
    assert "sync_dist" not in said  # Lightning's complaint about numbers that are logged for one process only
