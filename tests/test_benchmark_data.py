"""benchmark_data.py: what is read, compared and counted, on tiny videos; never how long anything took."""

import argparse
import json
import sys

import pytest
import torch

from lightning_csn import benchmark_data
from lightning_csn.benchmark_data import (
    Coded,
    Measured,
    Source,
    Timing,
    Way,
    as_text,
    count_needed,
    data_options,
    decoding_order,
    difference,
    find_copies,
    open_source,
    pack_copies,
    ratios,
    read_in_turns,
    row,
    shares_of,
    write_video,
)
from lightning_csn.cli import main
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError

OURS = ["ours", "ours, layout known", "ours, packed"]
FEW = ["--clip=4x2", "--clips=2", "--repeats=2", "--workers=1"]


def read_plainly(source, numbers):
    """As a peer would that gives the same frames."""
    with Video(source.path) as video:
        return video.frames(numbers, size=source.size).numpy()


def read_the_next(source, numbers):
    """As a peer would that counts from 1."""
    return read_plainly(source, [min(number + 1, source.num_frames - 1) for number in numbers])


def read_nothing(source, numbers):
    raise RuntimeError("moov atom not found\nand more")


@pytest.fixture
def peers(monkeypatch):
    """Three made-up peers, and one that is not installed."""

    def absent():
        raise InputError("not installed; pip install it")

    found = {
        "same": lambda: [Way("same", read_plainly, peer=True)],
        "next": lambda: [Way("next", read_the_next, peer=True)],
        "broken": lambda: [Way("broken", read_nothing, peer=True)],
        "absent": absent,
    }
    monkeypatch.setattr(benchmark_data, "PEERS", found)


def test_options_have_defaults_and_are_checked(capsys):
    parser = argparse.ArgumentParser()
    data_options(parser)
    args = parser.parse_args([])
    assert (args.videos, args.clip, args.clips, args.packed, args.workers, args.json) == (
        None,
        (32, 2),
        10,
        None,
        16,
        False,
    )
    assert parser.parse_args(["--clip", "8x4"]).clip == (8, 4)
    for wrong in ("8", "0x2", "8x4x2", "8x-1", "٣x2"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--clip={wrong}"])
        assert "frames x step is needed, such as 32x2" in capsys.readouterr().err


def test_every_way_reads_the_same_clips_and_the_answer_says_what_was_found(peers, make_video, tmp_path, capsys):
    path = str(make_video(tmp_path / "a.mp4", frames=30, options={"g": "10", "bf": "2", "preset": "medium"}))
    assert main(["benchmark", "data", "--videos", path, *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "packing" in captured.err
    assert result["benchmark"] == "data"
    assert result["made"] is False
    assert result["settings"] == {"clip": [4, 2], "clips": 2, "repeats": 2, "workers": 1}
    assert {"av", "decord", "torchcodec", "torch", "python", "device", "cores"} <= set(result["machine"])
    (video,) = result["videos"]
    assert (video["frames"], video["height"], video["width"], video["codec"]) == (30, 48, 64, "h264")
    assert result["absent"] == {"absent": "not installed; pip install it"}
    for task in ("random_clip", "spread_clips"):
        ways = {way["name"]: way for way in result[task]["ways"]}
        assert list(ways) == [*OURS, "same", "next", "broken"]
        assert [name for name, way in ways.items() if way["agrees"]] == [*OURS, "same"]
        assert ways["same"]["difference"] == 0
        assert ways["next"]["difference"] > 10
        assert ways["broken"]["error"] == "moov atom not found"
        assert all(len(ways[name]["seconds"]) == 2 for name in (*OURS, "same", "next"))
        assert list(result[task]["ratios"]) == OURS
        assert {ratio["against"] for ratio in result[task]["ratios"].values()} == {"same"}
    assert list(result["shares"]["ms"]) == ["opening", "demuxing and decoding", "converting"]
    assert list(result["dataset"]) == ["files", "packed"]
    assert result["dataset"]["files"]["clips_per_second_per_core"] > 0


def test_without_videos_one_is_made_and_the_text_says_so(peers, capsys, monkeypatch):
    write = benchmark_data.write_video
    monkeypatch.setattr(benchmark_data, "write_video", lambda path: write(path, seconds=0.5, size=(32, 48)))
    assert main(["benchmark", "data", *FEW]) == 0
    out, err = capsys.readouterr()
    assert "a video is made: 340x256, 10 s, 30 fps, h264 as x264 writes it by default" in err
    assert "made.mp4: h264, 48x32, 15 frames at 30 fps, 1 keyframes" in out
    assert "absent: not installed; pip install it" in out
    assert "other frames: not compared" in out
    assert "moov atom not found" in out
    assert "1 workers' worth" in out
    assert "came out of the decoder" in out


def test_shards_of_the_same_videos_are_found_by_what_they_were_packed_of(make_video, tmp_path):
    folder = tmp_path / "videos"
    sources = [open_source(str(make_video(folder / name, frames=n))) for name, n in (("a.mp4", 8), ("b.mp4", 12))]
    pack_copies(sources, str(tmp_path / "packed"))
    first, second = [source.packed for source in sources]
    assert "#000000" in first
    assert "#000001" in second
    again = open_source(str(folder / "b.mp4"))
    find_copies([again], str(tmp_path / "packed"))
    assert again.packed == second
    with pytest.raises(InputError, match=r"it holds no copy of .*c\.mp4"):
        find_copies([open_source(str(make_video(tmp_path / "c.mp4")))], str(tmp_path / "packed"))
    make_video(folder / "a.mp4", frames=20)
    with pytest.raises(InputError, match=r"has 8 frames, .*a\.mp4 20"):
        find_copies([open_source(str(folder / "a.mp4"))], str(tmp_path / "packed"))


def test_ways_take_turns_at_being_first():
    order = []

    def way(name):
        return Way(name, lambda source, numbers: order.append((name, numbers[0])) or torch.zeros(1, 1, 1, 3), peer=True)

    source = Source("a.mp4", 3, (1, 1), None, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_data, "read_ours", lambda source, numbers: torch.zeros(1, 1, 1, 3))
        read_in_turns([way("a"), way("b")], [source], [[[0], [1], [2]]])
    assert order == [("a", 0), ("b", 0), *[("a", 0), ("b", 0)], *[("b", 1), ("a", 1)], *[("a", 2), ("b", 2)]]


def test_an_error_of_ours_is_not_hidden():
    source = Source("a.mp4", 3, (1, 1), None, False)
    with pytest.raises(RuntimeError, match="moov"):
        read_in_turns([Way("ours", read_nothing)], [source], [[[0]]])


def test_medians_are_of_each_clock_alone():
    measured = Measured(Way("a", read_nothing), timings=[Timing(3, 1), Timing(1, 2), Timing(2, 9)], difference=0.0)
    assert measured.median == (2, 2)
    assert row(measured) == {
        "name": "a",
        "peer": False,
        "error": None,
        "difference": 0.0,
        "agrees": True,
        "ms": 2000,
        "cpu_ms": 2000,
        "seconds": [3, 1, 2],
        "cpu_seconds": [1, 2, 9],
    }


def timed_row(name, seconds, *, peer=True, agrees=True):
    median = sorted(seconds)[len(seconds) // 2]
    values = {"name": name, "peer": peer, "agrees": agrees, "error": None, "difference": 0.0 if agrees else 9.0}
    return values | {"seconds": seconds, "cpu_seconds": [2 * t for t in seconds], "ms": median, "cpu_ms": median}


def test_ratios_are_of_readings_side_by_side_against_the_fastest_that_agrees():
    rows = [
        timed_row("ours", [1.0, 5.0, 2.0], peer=False),
        timed_row("ours, packed", [0.5, 0.5, 0.5], peer=False),
        timed_row("slow", [9.0, 9.0, 9.0]),
        timed_row("fast", [1.5, 5.0, 4.0]),
        timed_row("wrong", [0.1, 0.1, 0.1], agrees=False),
    ]
    found = ratios(rows)
    assert found["ours"] == {"against": "fast", "speed": 1.5, "cpu_against": "fast", "cpu_speed": 1.5}
    assert found["ours, packed"]["speed"] == 8
    assert list(found) == ["ours", "ours, packed"]


def test_without_a_peer_that_agrees_there_is_no_ratio():
    rows = [timed_row("ours", [1.0], peer=False), timed_row("a", [5.0], agrees=False)]
    assert ratios(rows) == {}
    text = "\n".join(benchmark_data.task_text({"ways": rows, "ratios": {}}))
    assert "9.00, other frames: not compared" in text
    assert text.endswith("no peer gave the same frames: no ratio")


def test_frames_of_other_shapes_are_as_different_as_can_be():
    black, white = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    assert difference(black, black) == 0
    assert difference(white, black) == 255
    assert difference(black[:1], black) == 255


# as x264 writes them: I0 P3 b1 b2 P6 b4 b5, then a new keyframe with its own
ORDER = [Coded(n, n in (0, 7), n in (0, 3, 6, 7, 10)) for n in (0, 3, 1, 2, 6, 4, 5, 7, 10, 8, 9)]


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [
        ([0], (1, 1)),
        ([1], (3, 3)),  # I0 P3 b1
        ([5], (4, 7)),  # I0 P3 P6 b5
        ([2, 3], (3, 4)),  # P3 comes before b2
        ([3, 5], (4, 7)),
        ([1, 2, 4, 5], (7, 7)),
        ([9], (3, 4)),  # from the second keyframe alone
        ([1, 9], (6, 7)),
        ([], (0, 0)),
    ],
)
def test_the_floor_counts_what_is_wanted_and_what_it_may_refer_to(wanted, needed):
    assert count_needed(ORDER, wanted) == needed


def test_frames_that_others_refer_to_are_told_by_the_decoder(tmp_path):
    source = open_source(write_video(str(tmp_path / "a.mp4"), seconds=1, size=(64, 96)))
    order = decoding_order(source)
    assert sorted(frame.number for frame in order) == list(range(30))
    assert [frame.number for frame in order] != list(range(30))
    assert order[0].is_keyframe
    assert order[0].is_reference
    assert 5 < sum(frame.is_reference for frame in order) < 25
    shares = shares_of([source], [[[4, 6, 8], [20, 22]]])["frames"]
    assert shares["asked_for"] == 2.5
    assert shares["asked_for"] < shares["needed"] <= shares["decoded"] <= shares["from_keyframe"]


def test_the_made_video_is_the_same_every_time(tmp_path):
    paths = [write_video(str(tmp_path / name), seconds=0.2, size=(32, 48)) for name in ("a.mp4", "b.mp4")]
    with Video(paths[0]) as one, Video(paths[1]) as other:
        assert one.info.fps == 30
        frames = one.frames(range(6))
        assert torch.equal(frames, other.frames(range(6)))
    assert float((frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3)).min()) > 1  # it moves
    assert float(frames.float().std()) > 20


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_peers_that_are_installed_agree_with_us(name, tmp_path):
    try:
        ways = benchmark_data.PEERS[name]()
    except InputError as error:
        pytest.skip(str(error))
    source = open_source(write_video(str(tmp_path / "a.mp4"), seconds=1, size=(64, 96)))
    half = open_source(source.path)
    half.size, half.scaled = (32, 64), True  # decord fails at sizes whose rows it pads
    for each in read_in_turns(ways, [source, half], [[[3, 5, 7]]] * 2):
        assert each.error is None
        assert each.agrees, each.difference


def test_a_peer_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'lightning-csn\[benchmark\]'"):
        benchmark_data.decord_way()
    assert RuntimeError in benchmark_data.decoder_errors()


def test_a_video_that_cannot_be_read_is_the_callers_error(tmp_path, capsys):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"")
    assert main(["benchmark", "data", "--videos", str(path), *FEW]) == 2
    assert "a.mp4: the file is empty" in capsys.readouterr().err


def test_there_is_no_floor_where_one_of_the_videos_has_none(make_video, tmp_path):
    paths = [make_video(tmp_path / "a.mp4"), make_video(tmp_path / "a.avi", codec="mpeg4", options={"bf": "2"})]
    frames = shares_of([open_source(str(path)) for path in paths], [[[3]], [[3]]])["frames"]
    assert (frames["asked_for"], frames["needed"], frames["from_keyframe"]) == (1, 0, 0)
    assert frames["decoded"] > 0


def test_workers_that_take_turns_are_no_faster_than_one(monkeypatch, make_video, tmp_path):
    """Of two, one is done before the other begins; the sum of the speeds of each would be twice what there is."""
    clocks = [(0.0, 1.0, 0.5), (1.0, 2.0, 0.5), (2.0, 3.0, 0.5), (3.0, 4.0, 0.5)]
    monkeypatch.setattr("torch.utils.data.DataLoader", lambda dataset, **options: clocks)
    monkeypatch.setattr(benchmark_data, "cores", lambda: 2)
    paths = [str(make_video(tmp_path / "a.mp4"))]
    speed = benchmark_data.measure_dataset(paths, benchmark_data.training_clip((4, 2)), workers=2, clips_each=2)
    assert (speed["clips_per_second"], speed["clips_per_second_per_core"]) == (1.0, 0.5)
    assert speed["clips_per_cpu_second"] == 2.0


def test_many_videos_are_counted_not_listed():
    video = {"path": "x.mp4", "codec": "h264", "width": 4, "height": 2, "frames": 9, "fps": None, "keyframes": 1}
    speed = {"crop": 8, "clips_per_second_per_core": 1.0, "workers": 2, "clips_per_cpu_second": 3.0, "cores": 1}
    result = {
        "settings": {"clip": [8, 4], "clips": 3, "repeats": 5},
        "machine": {"device": "a machine", "cores": 2, "av": "18", "decord": None, "torchcodec": None, "torch": "2"},
        "videos": [{**video, "bytes": 10**6}] * 5,
        "made": False,
        "absent": {},
        "random_clip": {"ways": [], "ratios": {}},
        "spread_clips": {"ways": [], "ratios": {}},
        "shares": {
            "ms": {"opening": 1.0, "converting": 3.0},
            "frames": {"asked_for": 8, "needed": 0, "decoded": 9, "from_keyframe": 0},
        },
        "dataset": {"files": speed},
    }
    text = as_text(result)
    assert "medians of 25" in text
    assert text.count("x.mp4: h264, 4x2, 9 frames, 1 keyframes, 1.00 MB") == 3
    assert "and 2 more videos" in text
    assert "opening 1.0 ms (25%), converting 3.0 ms (75%)" in text
    assert "must be decoded" not in text
