"""Features: those of the network, of every video once, in any number of runs and processes, with what they are of."""

from __future__ import annotations

import signal

import lightning as L
import numpy as np
import pytest
import torch

from lightning_csn.cli import main
from lightning_csn.clip import ClipSpec
from lightning_csn.data.dataset import VideoDataset
from lightning_csn.errors import InputError
from lightning_csn.feature_file import read_features
from lightning_csn.features import FeatureExtractor, LabelledVideos, extract_features
from lightning_csn.models import checkpoints
from lightning_csn.models import fold as fold_module
from lightning_csn.models.network import create_network
from lightning_csn.module import LitCSN

CLIP = ClipSpec(
    frames=9, step=1, fps=None, short_side=40, crop=32, test_crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2)
)
NAMES = ["clapping", "jumping", "waving"]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", classes=["a", "b"], clip=CLIP.to_dict()).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    return str(model.save_pretrained(tmp_path_factory.mktemp("weights") / "tiny"))


def videos(root, **options):
    return LabelledVideos(root, **{"num_workers": 0, "test_clips": 2, "test_crops": 1} | options)


def extract(model, data, path, **options):
    return extract_features(model, data, path, accelerator="cpu", **options)


def view_features(model, samples):
    """Each view by itself, by the network as it was trained: (N, V, D)."""
    dataset = VideoDataset(samples, CLIP, train=False, clips=2)
    rows = []
    with torch.inference_mode():
        for item in (dataset[i] for i in range(len(dataset))):
            last = model.network.forward_features(model.normalise(item["clips"]))
            rows.append(model.network.forward_head(last, pre_logits=True))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_every_video_of_every_split_has_the_networks_features(ending, model, weights, split_folder, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    data = videos(split_folder)
    assert extract(weights, data, tmp_path / f"f.{ending}") == (27, 0, 0)
    found = read_features(tmp_path / f"f.{ending}")
    samples = [sample for split in ("train", "val", "test") for sample in data.samples[split]]
    np.testing.assert_allclose(found.features, view_features(model, samples).mean(1), atol=1e-5)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 0, 1, 1, 2, 2] + [0] * 3 + [1] * 3 + [2] * 3
    assert found.classes == NAMES
    assert found.paths == [sample.path for sample in samples]
    assert found.splits == ["train"] * 12 + ["val"] * 6 + ["test"] * 9
    assert found.parts == [None] * 27
    assert not found.short.any()
    expected = {"model": weights, "architecture": "ircsn_tiny", "clips": 2, "crops": 1, "per": "video", "frames": 9}
    assert expected.items() <= found.manifest.items()
    assert [path.name for path in tmp_path.iterdir()] == [f"f.{ending}"]


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_views_and_steps_have_the_same_mean(ending, model, video_folder, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    found = {}
    for per in ("video", "view", "step"):  # "full": a map of 2 x 2 places
        extract(model, videos(video_folder, test_crops="full"), tmp_path / f"{per}.{ending}", per=per)
        found[per] = read_features(tmp_path / f"{per}.{ending}")
    assert [found[per].features.shape for per in found] == [(9, 512), (9, 2, 512), (9, 2, 2, 512)]
    assert not np.allclose(found["step"].features[:, :, 0], found["step"].features[:, :, 1])
    np.testing.assert_allclose(found["step"].features.mean(2), found["view"].features, atol=1e-6)
    for per in ("view", "step"):
        assert found[per].pooled().shape == (9, 512)
    np.testing.assert_allclose(found["view"].pooled(), found["video"].features, atol=1e-6)
    # The last video has 20 frames, 25 a second: clips of frames 0 to 8 and 11 to 19, whose second step is one frame.
    steps = [[[0, 0.28], [0.32, 0.32]], [[0.44, 0.72], [0.76, 0.76]]]
    np.testing.assert_allclose(found["step"].times[-1], steps, atol=1e-6)
    np.testing.assert_allclose(found["view"].times[-1], [[0, 0.32], [0.44, 0.76]], atol=1e-6)
    assert found["video"].times is None


def test_the_views_of_a_clip_have_its_times(model, video_folder, tmp_path):
    extract(model, videos(video_folder, test_crops=3), tmp_path / "f.npz", per="view")
    times = read_features(tmp_path / "f.npz").times
    assert times.shape == (9, 6, 2)
    np.testing.assert_allclose(times[-1, :, 0], [0, 0, 0, 0.44, 0.44, 0.44], atol=1e-6)


def test_the_quick_form_is_taken_unless_it_is_to_be_exact(model, video_folder, tmp_path, monkeypatch):
    folded = []
    monkeypatch.setattr(fold_module, "cannot_pack", lambda device, dtype: None)
    monkeypatch.setattr(fold_module, "fold", lambda network: folded.append(network) or network)
    extract(model, videos(video_folder), tmp_path / "exact.npz", exact=True)
    assert folded == []
    extract(model, videos(video_folder), tmp_path / "quick.npz")
    assert folded == [model.network]
    assert [read_features(tmp_path / f"{name}.npz").manifest["exact"] for name in ("exact", "quick")] == [True, False]


class Stop(L.Callback):
    """Keeps the numbers of the videos that are seen, and stops at a batch."""

    def __init__(self, batch=None):
        self.batch, self.seen = batch, []

    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.seen += batch["videos"].tolist()
        if batch_idx == self.batch:
            raise RuntimeError("stop")


def test_a_stopped_run_goes_on_to_the_same_bytes(model, video_folder, tmp_path):
    data = videos(video_folder, eval_batch_size=2)
    extract(model, data, tmp_path / "whole.npz")
    with pytest.raises(RuntimeError, match="stop"):
        extract(model, data, tmp_path / "a.npz", callbacks=[Stop(2)])
    watch = Stop()
    extract(model, data, tmp_path / "a.npz", callbacks=[watch])
    assert watch.seen == [4, 5, 6, 7, 8]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "whole.npz"]


def test_what_was_found_otherwise_is_no_part_of_it_but_another_head_is_no_other_network(model, video_folder, tmp_path):
    data = videos(video_folder, eval_batch_size=2)
    with pytest.raises(RuntimeError, match="stop"):
        extract(model, data, tmp_path / "a.npz", callbacks=[Stop(2)])
    for options, message in (({"per": "view"}, "per video and view"), ({"exact": True}, "exact False and True")):
        with pytest.raises(InputError, match=rf"a\.npz\.parts holds features of another run.*{message}"):
            extract(model, data, tmp_path / "a.npz", **options)
    with pytest.raises(InputError, match="clips 2 and 3"):
        extract(model, videos(video_folder, test_clips=3), tmp_path / "a.npz")
    other = LitCSN("ircsn_tiny", num_classes=5, clip=CLIP.to_dict()).eval()
    with pytest.raises(InputError, match="weights"):
        extract(other, data, tmp_path / "a.npz")
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "head" not in k}, strict=False)
    assert extract(other, data, tmp_path / "a.npz").videos == 9


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_unreadable_and_short_videos_are_named(ending, model, make_video, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    for name in ("run", "walk"):
        make_video(tmp_path / "videos" / name / "b.mp4", frames=12)
    make_video(tmp_path / "videos/walk/c.mp4", frames=5)
    (tmp_path / "videos/run/a.mp4").write_bytes(b"no video")
    assert extract(model, videos(tmp_path / "videos"), tmp_path / f"f.{ending}") == (4, 1, 1)
    found = read_features(tmp_path / f"f.{ending}")
    assert [path[-10:] for path in found.paths] == ["/run/b.mp4", "walk/b.mp4", "walk/c.mp4"]
    assert found.labels.tolist() == [0, 1, 1]
    assert found.short.tolist() == [False, False, True]
    ((path, split, error),) = found.unreadable
    assert (path, split) == (str(tmp_path / "videos/run/a.mp4"), "all")
    assert "run/a.mp4" in error


def test_videos_without_classes_have_features_without_labels(model, make_video, tmp_path):
    for n in range(2):
        make_video(tmp_path / "videos" / f"{n}.mp4", frames=12)
    extract(model, videos(tmp_path / "videos"), tmp_path / "f.npz")
    found = read_features(tmp_path / "f.npz")
    assert (found.features.shape, found.labels.tolist(), found.splits) == ((2, 512), [-1, -1], ["", ""])


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_parts_and_several_labels_are_kept(ending, model, video_folder, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    rows = ["path,labels,start_frame,end_frame", "waving/waving_2.mp4,a|c,0,10", "waving/waving_2.mp4,b,8,20"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    extract(model, videos(video_folder, train_list=tmp_path / "train.csv"), tmp_path / f"f.{ending}")
    found = read_features(tmp_path / f"f.{ending}")
    assert found.classes == ["a", "b", "c"]
    assert found.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert [tuple(part) for part in found.parts] == [(0, 10, "frames"), (8, 20, "frames")]
    assert not np.allclose(*found.features)


def test_weights_without_a_head_and_a_run_will_do_an_exported_file_will_not(model, weights, video_folder, tmp_path):
    network = create_network("ircsn_tiny", num_classes=0).eval()
    record = checkpoints.Checkpoint(architecture="ircsn_tiny", num_classes=0, clip=CLIP.to_dict())
    checkpoints.save(network, record, tmp_path / "trunk")
    extract(tmp_path / "trunk", videos(video_folder), tmp_path / "a.npz")
    assert read_features(tmp_path / "a.npz").features.shape == (9, 512)
    for source in ("model.onnx", "model.xml", "model.pt2"):
        with pytest.raises(InputError, match=rf"{source} is an exported file, which gives logits and no features"):
            extract(source, videos(video_folder), tmp_path / "b.npz")


def test_features_in_parquet_without_pyarrow_say_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "f.parquet").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"f\.parquet needs pyarrow, .*: pip install 'lightning-csn\[parquet\]'"):
        read_features(tmp_path / "f.parquet")


@pytest.mark.parametrize("name", ["f.npz", "f.parquet", "array.npz", "other.npz"])
def test_another_file_is_no_file_of_features(name, tmp_path):
    if name == "f.parquet":
        pytest.importorskip("pyarrow")
    with (tmp_path / name).open("wb") as file:
        if name == "other.npz":
            np.savez(file, features=np.zeros(3))
        elif name == "array.npz":
            np.save(file, np.zeros(3))
        else:
            file.write(b"something else")
    with pytest.raises(InputError, match=rf"{name}: this is no file of features") as raised:
        read_features(tmp_path / name)
    assert "pickle" not in str(raised.value)
    with pytest.raises(InputError, match="no such file; 'lightning-csn features' writes features"):
        read_features(tmp_path / "nowhere.npz")


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import lightning as L
from lightning_csn.features import LabelledVideos, extract_features

weights, root, out = sys.argv[1:]


class Kill(L.Callback):
    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            parts = Path(f"{out}.parts")
            while sum(part.read_bytes().count(b"\\n") for part in parts.glob("*.jsonl")) < 2 * (1 + 2):  # whole lines
                time.sleep(0.01)
            os.killpg(0, signal.SIGKILL)


data = LabelledVideos(root, num_workers=0, test_clips=2, test_crops=1, eval_batch_size=1)
extract_features(weights, data, out, accelerator="cpu", devices=2, strategy="ddp", callbacks=[Kill()])
"""


def test_one_process_goes_on_where_two_were_killed(run_script, weights, video_folder, tmp_path):
    run_script(tmp_path, SCRIPT, weights, video_folder, "two.npz", code=-signal.SIGKILL)
    assert len(list((tmp_path / "two.npz.parts").glob("*.jsonl"))) == 2
    watch = Stop()
    data = videos(video_folder, eval_batch_size=1)
    extract(weights, data, tmp_path / "two.npz", callbacks=[watch])
    assert watch.seen == [4, 5, 6, 7, 8]
    extract(weights, data, tmp_path / "one.npz")
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_the_command_says_how_many_there_are_and_fails_where_one_is_unreadable(
    weights, make_video, tmp_path, capsys, monkeypatch
):
    def interrupt(self, batch, batch_idx):
        raise KeyboardInterrupt

    make_video(tmp_path / "videos/run/b.mp4", frames=12)
    make_video(tmp_path / "videos/walk/b.mp4", frames=2)
    lists = [tmp_path / "train.txt", tmp_path / "val.txt"]
    for file, path in zip(lists, ("run/b.mp4 run", "walk/b.mp4 walk"), strict=True):
        file.write_text(f"{path}\n")
    out = tmp_path / "f.npz"
    options = ["--model", weights, "--workers", "0", "--accelerator", "cpu", "--clips", "1", "--output", str(out)]
    command = ["features", str(tmp_path / "videos"), "--train-list", str(lists[0]), "--val-list", str(lists[1])]
    assert main([*command, *options, "--dense"]) == 0
    said = capsys.readouterr()
    assert said.out == f"features: {out} (2 videos)\n"
    assert f"1 video is shorter than a clip of {weights}, so frames are repeated\n" in said.err
    assert read_features(out).features.shape == (2, 1, 2, 512)
    assert read_features(out).splits == ["train", "val"]
    (tmp_path / "videos/run/b.mp4").write_bytes(b"no video")
    assert main([*command, *options]) == 2
    assert capsys.readouterr().out == f"features: {out} (2 videos, 1 of them unreadable)\n"
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "predict_step", interrupt)
        assert main([*command, *options]) == 130
    assert "interrupted; the same command goes on with the videos that are left\n" in capsys.readouterr().err
    assert main(["features"]) == 2
    assert "features needs videos: ROOT, or a list file" in capsys.readouterr().err
