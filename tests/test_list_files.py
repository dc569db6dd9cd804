"""List files line by line: where a path ends, which columns follow it, and what names classes."""

from __future__ import annotations

import pytest

from lightning_csn.data.list_files import Line, parse_line, place_paths, read_classes, read_json, read_list
from lightning_csn.errors import InputError


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.mp4 5", "a.mp4", "5"),
        ("a.mp4,5", "a.mp4", "5"),
        ("a.mp4 , 5 ", "a.mp4", "5"),
        ("a.mp4\t5", "a.mp4", "5"),
        ("run/a b.mp4 5", "run/a b.mp4", "5"),
        ("run/a, b.mp4,5", "run/a, b.mp4", "5"),
        ("a.mp4 brush hair", "a.mp4", "brush hair"),
        ("a.mp4\tbrush, hair", "a.mp4", "brush, hair"),
        ('"a b.mp4","brush, hair"', "a b.mp4", "brush, hair"),
        ('"a b.mp4" 5', "a b.mp4", "5"),
        ("a.avi.MP4 brush hair", "a.avi.MP4", "brush hair"),
        ("v1.mp4 files/b.avi 3", "v1.mp4 files/b.avi", "3"),
        ("frames/of a 5", "frames/of a", "5"),
        ("frames/of a,brush hair", "frames/of a", "brush hair"),
        ("C:\\clips\\a b.mp4 5", "C:\\clips\\a b.mp4", "5"),
        ("/abs/a.mp4", "/abs/a.mp4", None),
        ("my film.mp4", "my film.mp4", None),
        ("a.mp4 -1", "a.mp4", "-1"),
        ("a.mp4;5", "a.mp4", "5"),
        ("a b.mp4 | brush; hair", "a b.mp4", "brush; hair"),
        ("24;Putting a, b and c on d", "24", "Putting a, b and c on d"),
        ("frames of a\tbrush hair", "frames of a", "brush hair"),
        ('"#20 ""x"".avi"\tclap', '#20 "x".avi', "clap"),
        ('"video 12" 5', "video 12", "5"),
        ("features/a.npy,brush hair", "features/a.npy", "brush hair"),
        ("a,b,c,d", "a,b,c", "d"),
    ],
)
def test_lines_of_a_list(line, path, label):
    assert parse_line(line, number=7) == Line(7, path, () if label is None else (label,))


@pytest.mark.parametrize(
    ("line", "path", "columns"),
    [
        ("a.mp4 0 5", "a.mp4", ("0", "5")),
        ("a b.mp4, 0 ,5,", "a b.mp4", ("0", "5")),
        ("a.mp4\trun\t5", "a.mp4", ("run", "5")),
        ("a.mp4 0.5 12.25 brush hair", "a.mp4", ("0.5", "12.25", "brush hair")),
        ("a.mp4;1,5,7", "a.mp4", ("1,5,7",)),
        ("a.mp4 3 point turn", "a.mp4", ("3 point turn",)),
        ("jumping/0001 1 17 0", "jumping/0001", ("1", "17", "0")),
        ("jumping/0001,17,0", "jumping/0001", ("17", "0")),
        ('a.mp4,"brush, hair",2', "a.mp4", ("brush, hair", "2")),
    ],
)
def test_lines_with_more_columns(line, path, columns):
    assert parse_line(line) == Line(1, path, columns)


def test_a_list_that_is_no_text_or_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match=r"val.txt: the list of videos cannot be read: No such file"):
        read_list(tmp_path / "val.txt")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00 5\n")
    with pytest.raises(InputError, match=r"val.txt: a list of videos is text in UTF-8"):
        read_list(tmp_path / "val.txt")
    (tmp_path / "val.json").write_text('{"a":\n 1,}')
    with pytest.raises(InputError, match=r"val.json, line 2: no JSON"):
        read_json(tmp_path / "val.json")


def test_remarks_and_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeff# a remark\n\nb.mp4 run\n", encoding="utf-8")
    assert read_list(tmp_path / "list.txt") == [Line(3, "b.mp4", ("run",))]


def test_lines_end_where_editors_end_them(tmp_path):
    (tmp_path / "list.txt").write_bytes("a\u2028b.mp4 0\r\nc\x0bd.mp4 1\re\x85f.mp4 2\n".encode())
    assert [line.path for line in read_list(tmp_path / "list.txt")] == ["a\u2028b.mp4", "c\x0bd.mp4", "e\x85f.mp4"]


def test_paths_start_at_root_or_at_the_list(tmp_path):
    (tmp_path / "a.mp4").touch()
    lines = [Line(1, "a.mp4"), Line(2, "gone.mp4")]
    assert place_paths(lines, tmp_path / "list.txt", None) == [str(tmp_path / "a.mp4"), str(tmp_path / "gone.mp4")]
    with pytest.raises(InputError, match=r"list.txt, line 1: no such file: .*none of the list's 2 videos is there"):
        place_paths(lines, tmp_path / "list.txt", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classInd.txt", "1 brush hair\n2 clap\n3 wave\n"),
        ("moments_categories.txt", "clap,1\nbrush hair,0\nwave,2\n"),
        ("labels.csv", "brush hair\nclap\nwave\n"),
        ("kinetics.csv", "id,name\n0,brush hair\n1,clap\n2,wave\n"),
        ("labels.json", '{"clap": "1", "brush hair": "0", "wave": "2"}'),
        ("numbers.json", '{"1": "clap", "0": "brush hair", "2": "wave"}'),
        ("vocab.json", '[["brush", "hair"], ["clap"], ["wave"]]'),
        ("list.json", '["brush hair", "clap", "wave"]'),
    ],
)
def test_names_of_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == ["brush hair", "clap", "wave"]


def test_names_with_numbers_that_are_no_order_are_names(tmp_path):
    (tmp_path / "classes.txt").write_text("4 hands\n7 hands\n")
    assert read_classes(tmp_path / "classes.txt") == ["4 hands", "7 hands"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("clap\nclap\n", "'clap' names two classes"), ("\n", "no line names a class")],
)
def test_files_of_classes_that_are_none(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "classes.txt")
