"""What the columns of a list without a heading mean."""

import pytest

from lightning_csn.data.list_columns import reading_of
from lightning_csn.data.list_files import Line, parse_line


@pytest.mark.parametrize(
    ("lines", "layout"),
    [
        (["a.mp4 3", "b.mp4 7"], "list"),
        (["a.mp4 run", "b.mp4"], "list"),
        (["a.mp4 3 7", "b.mp4 1"], "multi-label"),
        (["a.mp4 3 7", "b.mp4 1 2"], "multi-label"),
        (["a.mp4,1;5", "b.mp4,7"], "multi-label"),
        (["a.mp4 0 10 3", "a.mp4 10 20 1"], "segments"),
        (["a.mp4 0 10 3", "a.mp4 20 10 1"], "multi-label"),
        (["a.mp4 0 10 3", "b.mp4 4"], "multi-label"),
        (["a.mp4 0.5 10 brush hair"], "segments"),
        (["a.mp4,brush hair,0.5,10"], "segments"),
        (["a.mp4,run,jump"], "list"),
        (["frames/a 17 3", "frames/b 20 1"], "frames"),
        (["frames/a 17 3 5", "frames/b 20 1"], "frames"),
        (["frames/a 1 17 3", "frames/b 1 20 1"], "frame-ranges"),
    ],
)
def test_what_columns_mean(lines, layout):
    assert reading_of([parse_line(line, number=i) for i, line in enumerate(lines, 1)]).layout == layout


@pytest.mark.parametrize(
    ("columns", "pictures", "layout"),
    [
        (("17", "0", "3"), range(1, 18), "frames"),
        (("1", "17", "0"), range(1, 18), "frame-ranges"),
        (("0", "16", "0"), range(17), "frame-ranges"),
        (("1", "17", "0"), range(17), "frame-offsets"),  # 17 is no picture
        (("10", "5", "0"), range(1, 18), "frame-offsets"),
    ],
)
def test_what_columns_mean_is_seen_in_the_folders(columns, pictures, layout):
    assert reading_of([Line(1, "a", columns)], lambda line: list(pictures)).layout == layout
