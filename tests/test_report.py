"""The report as plain values."""

import json

from lightning_csn.clip import ClipSpec

CLIP = ClipSpec(
    frames=8, step=2, fps=25, short_side=48, crop=32, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def test_the_report_is_plain_values(report_of, entry_of):
    given = {"train": [("a", 0), ("b", 1)], "val": [("c", 0), ("d", 1)]}
    report = report_of(given, clip=CLIP, a=None, b=entry_of("b", error="b: broken"))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["safe"] is False
    assert [video["missing"] for video in values["videos"]] == [True, False, False, False]
    assert values["videos"][2]["fate"]["num_frames"] == 50
    assert values["videos"][1]["error"] == "b: broken"
