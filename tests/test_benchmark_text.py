"""The text of benchmark data."""

from lightning_csn.benchmark_text import as_text, task_text


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
        "not_measured": [],
    }
    text = as_text(result)
    assert "medians of 25" in text
    assert text.count("x.mp4: h264, 4x2, 9 frames, 1 keyframes, 1.00 MB") == 3
    assert "and 2 more videos" in text
    assert "opening 1.0 ms (25%), converting 3.0 ms (75%)" in text
    assert "must be decoded" not in text


def test_a_way_of_other_frames_is_shown_with_no_ratio():
    way = {"name": "a", "agrees": False, "error": None, "difference": 9.0, "ms": 5.0, "cpu_ms": 5.0}
    text = "\n".join(task_text({"ways": [way], "ratios": {}}))
    assert "9.00, other frames: not compared" in text
    assert text.endswith("no peer gave the same frames: no ratio")
