"""Pictures of what a network says: a contact sheet of videos with their answers.

A card shows frames of one video in their order, under them the three likeliest classes as bars and, where the truth
is known, whether the first of them is correct: in colour and in words.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_csn.errors import InputError

FRAMES = 4  # on a card
BARS = 3

_CELL = (150, 112)  # pixels, width and height; a frame is fitted in and centred
_GAP = 4  # between frames
_MARGIN = 16  # between cards
_LINE = 22  # height of a line of text
_CARD = (FRAMES * _CELL[0] + (FRAMES - 1) * _GAP, _CELL[1] + (2 + BARS) * _LINE + 8)
_NAMES = 190  # width of the column of class names
_PERCENT = 52  # width of the column of percentages

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # load_default gives either, as Pillow was built
_PAPER, _INK, _QUIET, _TRACK = "#ffffff", "#1a1a1a", "#5f6368", "#e8eaed"
_BAR, _RIGHT, _WRONG = "#4a6fa5", "#1b7f3b", "#c0281c"  # all three at 4.5:1 or more on white


@dataclass(frozen=True)
class Card:
    """One video of a sheet.

    title: what stands above the bars, usually the file's name.
    frames: uint8 (T, H, W, 3), in their order; `FRAMES` of them are shown, the first and the last among them.
    top: classes with their probabilities, the likeliest first.
    truth: the class it should be, or None where nobody knows.
    """

    title: str
    frames: Tensor
    top: Sequence[tuple[str, float]]
    truth: str | None = None


def contact_sheet(cards: Sequence[Card], path: str | os.PathLike[str], *, columns: int = 2) -> Path:
    """Draw the cards row by row into a picture file, PNG by its ending; InputError where it cannot be written."""
    if not cards:
        raise InputError("a contact sheet needs one video or more, got none")
    columns = min(columns, len(cards))
    rows = -(-len(cards) // columns)
    size = (_MARGIN + columns * (_CARD[0] + _MARGIN), _MARGIN + rows * (_CARD[1] + _MARGIN))
    sheet = Image.new("RGB", size, _PAPER)
    for i, card in enumerate(cards):
        row, column = divmod(i, columns)
        _draw(card, sheet, _MARGIN + column * (_CARD[0] + _MARGIN), _MARGIN + row * (_CARD[1] + _MARGIN))
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no format of this ending
        raise InputError(f"{target}: the contact sheet cannot be written: {error}") from error
    return target


def spread(total: int, count: int) -> list[int]:
    """`count` numbers of 0..total-1, evenly spread, first and last among them; fewer where there are fewer.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    >>> spread(2, 4)
    [0, 1]
    """
    count = min(count, total)
    return [0] if count == 1 else [i * (total - 1) // (count - 1) for i in range(count)]


def check_picture(path: str | os.PathLike[str]) -> None:
    """InputError where Pillow writes no pictures with this ending.

    >>> check_picture("sheet.png")
    """
    known = Image.registered_extensions()
    if known.get(Path(path).suffix.lower()) not in Image.SAVE:
        raise InputError(f"{path}: no picture can be written with this ending; .png and .jpg can")


def _draw(card: Card, sheet: Image.Image, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    text = ImageFont.load_default(14)

    for i, number in enumerate(spread(len(card.frames), FRAMES)):
        cell = left + i * (_CELL[0] + _GAP)
        draw.rectangle((cell, top, cell + _CELL[0] - 1, top + _CELL[1] - 1), fill=_TRACK)
        frame = Image.fromarray(card.frames[number].cpu().numpy())
        scale = min(_CELL[0] / frame.width, _CELL[1] / frame.height)
        frame = frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))
        sheet.paste(frame, (cell + (_CELL[0] - frame.width) // 2, top + (_CELL[1] - frame.height) // 2))

    y = top + _CELL[1] + 6
    draw.text((left, y), _shorten(card.title, draw, text, _CARD[0]), _QUIET, text)
    for name, probability in card.top[:BARS]:
        y += _LINE
        draw.text((left, y), _shorten(name, draw, text, _NAMES - 8), _INK, text)
        start, end = left + _NAMES, left + _CARD[0] - _PERCENT
        draw.rectangle((start, y + 3, end, y + 15), fill=_TRACK)
        if probability > 0:
            draw.rectangle((start, y + 3, start + round((end - start) * probability), y + 15), fill=_BAR)
        draw.text((left + _CARD[0], y), f"{probability:.1%}", _INK, text, anchor="ra")

    y = top + _CELL[1] + 6 + (1 + BARS) * _LINE
    if card.truth is not None:
        right = bool(card.top) and card.top[0][0] == card.truth
        verdict = "correct" if right else f"wrong: it is {card.truth}"
        colour = _RIGHT if right else _WRONG
        _mark(draw, left, y + 3, right, colour)
        draw.text((left + 20, y), _shorten(verdict, draw, text, _CARD[0] - 20), colour, text)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, colour: str) -> None:
    """A tick or a cross, drawn: the default font has neither."""
    if right:
        draw.line([(x, y + 7), (x + 4, y + 11), (x + 13, y + 1)], colour, 3, joint="curve")
    else:
        draw.line([(x + 1, y + 1), (x + 11, y + 11)], colour, 3)
        draw.line([(x + 1, y + 11), (x + 11, y + 1)], colour, 3)


def _shorten(text: str, draw: ImageDraw.ImageDraw, font: _Font, width: int) -> str:
    """The text, with dots for its middle where it is wider than `width` pixels: paths differ at both ends."""
    short, keep = text, len(text)
    while draw.textlength(short, font) > width and keep > 2:
        keep -= 1
        short = text[: keep // 2] + "..." + text[len(text) - (keep - keep // 2) :]
    return short
