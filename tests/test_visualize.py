"""The contact sheet: what is drawn can be found in its pixels."""

import pytest
import torch
from PIL import Image

from lightning_csn import visualize
from lightning_csn.errors import InputError
from lightning_csn.visualize import Card, contact_sheet, spread


def frames_of(colour, count=8, height=60, width=80):
    return torch.tensor(colour, dtype=torch.uint8).expand(count, height, width, 3).contiguous()


def pixels(path, colour):
    """How many pixels of the picture have exactly this colour."""
    picture = Image.open(path).convert("RGB")
    return {value: count for count, value in picture.getcolors(picture.width * picture.height)}.get(colour, 0)


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


TOP = [("left", 0.75), ("right", 0.2), ("up", 0.05)]


def test_a_sheet_shows_four_frames_of_every_video(tmp_path):
    red, blue = (200, 0, 0), (0, 0, 200)
    path = contact_sheet(
        [Card("a.mp4", frames_of(red), TOP), Card("b.mp4", frames_of(blue), TOP)], tmp_path / "new" / "sheet.png"
    )
    cell = visualize._CELL[0] * visualize._CELL[1]
    for colour in (red, blue):
        assert pixels(path, colour) == pytest.approx(4 * cell, rel=0.02)  # 80 x 60 has all but the shape of a cell


def test_frames_stand_in_their_order(tmp_path):
    grays = torch.arange(7, dtype=torch.uint8).mul(30).view(7, 1, 1, 1).expand(7, 30, 40, 3).contiguous()
    picture = Image.open(contact_sheet([Card("a", grays, TOP)], tmp_path / "sheet.png"))
    step = visualize._CELL[0] + visualize._GAP
    shown = [picture.getpixel((visualize._MARGIN + i * step + 75, visualize._MARGIN + 50))[0] for i in range(4)]
    assert shown == [0, 60, 120, 180]


@pytest.mark.parametrize(
    ("truth", "right", "wrong"), [("left", True, False), ("up", False, True), (None, False, False)]
)
def test_the_verdict_is_green_or_red_or_absent(tmp_path, truth, right, wrong):
    path = contact_sheet([Card("a", frames_of((9, 9, 9)), TOP, truth)], tmp_path / "sheet.png")
    assert (pixels(path, rgb(visualize._RIGHT)) > 30) == right
    assert (pixels(path, rgb(visualize._WRONG)) > 30) == wrong


def test_bars_are_as_long_as_the_probabilities(tmp_path):
    def length(top):
        return pixels(contact_sheet([Card("a", frames_of((9, 9, 9)), top)], tmp_path / "s.png"), rgb(visualize._BAR))

    assert length([("a", 1.0)]) == pytest.approx(4 * length([("a", 0.25)]), rel=0.02)
    assert length([("a", 0.0)]) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_few_frames_and_long_names_have_their_place(tmp_path, count):
    long = "a very long class name " * 20
    card = Card(long, frames_of((9, 9, 9), count, height=200, width=10), [(long, 1.0)], long)
    picture = Image.open(contact_sheet([card] * 3, tmp_path / "sheet.png"))
    margin = picture.crop((picture.width - visualize._MARGIN, 0, picture.width, picture.height))
    assert margin.getcolors() == [(margin.width * margin.height, (255, 255, 255))]  # nothing runs over the edge


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(InputError, match="one video or more"):
        contact_sheet([], tmp_path / "sheet.png")
    with pytest.raises(InputError, match=r"sheet\.nope: the contact sheet cannot be written"):
        contact_sheet([Card("a", frames_of((9, 9, 9)), TOP)], tmp_path / "sheet.nope")


def test_spread_holds_the_first_and_the_last():
    assert [spread(total, 4) for total in (1, 3, 4, 100)] == [[0], [0, 1, 2], [0, 1, 2, 3], [0, 33, 66, 99]]
