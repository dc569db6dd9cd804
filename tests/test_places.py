"""Where the videos are that a list names."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import touch

from lightning_csn.data.places import Place, Places, Wanted
from lightning_csn.errors import InputError


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["a.mp4"], "a.mp4", "a.mp4"),
        (["videos/a.mp4"], "a.mp4", "videos/a.mp4"),
        (["x/videos/run/a.webm"], "run/a", "x/videos/run/a.webm"),
        (["deep/er/and/er/run/a.avi"], "run/a.npy", "deep/er/and/er/run/a.avi"),
        (["train/run/a.mp4"], "/another/machine/run/a.mp4", "train/run/a.mp4"),
        (["frames/24/0001.jpg"], "24", "frames/24"),
        (["frames/run/v_1/0001.jpg"], "run/v_1.avi", "frames/run/v_1"),  # its frames were taken out as pictures
        (["p/q/r/frames/run/v_1/0001.jpg"], "run/v_1.avi", "p/q/r/frames/run/v_1"),
        (["one/a.mp4", "val/a.mp4"], "a.mp4", "val/a.mp4"),  # the split is val
        (["p/q/r/s/walk/a.mp4", "p/q/r/s/run/a.mp4"], "a.mp4", "p/q/r/s/run/a.mp4"),  # the label is run
        (["jump/0001.mp4"], "run/0001.mp4", None),  # another video of the same name
        (["train/run/a.mp4", "val/b.mp4"], "a.mp4", None),  # there is a folder for val, and it is not in there
        (["train/run/a.mp4", "val/b.mp4"], "vla/run/a.mp4", None),
        (["train/train/a.mp4", "val/run/a.mp4", "val/b.mp4"], "vla/run/a.mp4", "val/run/a.mp4"),
    ],
)
def test_what_lists_name_is_found(tmp_path, files, name, found):
    places = Places(touch(tmp_path, *files), search=True)
    (place,) = places.find([Wanted(name, "val.txt, line 1", "val", ("run",))])
    if found is None:
        assert place == Place(str(tmp_path / name), False)
    else:
        assert place.there is not False
        assert Path(place.path) == tmp_path / found


def test_two_that_may_be_meant_are_an_error(tmp_path):
    places = Places(touch(tmp_path, "p/q/r/one/a.mp4", "p/q/r/two/a.mp4"), search=True)
    with pytest.raises(InputError, match=r"val.txt, line 1: 'a.mp4' can be .*one/a.mp4 or .*two/a.mp4"):
        places.find([Wanted("a.mp4", "val.txt, line 1")])


def test_of_folders_that_have_every_name_that_of_the_split_is_taken_or_none(tmp_path):
    touch(tmp_path, "train/rgb/1.mp4", "train/rgb/2.mp4", "val/rgb/1.mp4", "val/rgb/2.mp4")
    for split in ("train", "val"):
        places = Places(tmp_path, search=True).find([Wanted("1.mp4", "list", split), Wanted("2.mp4", "list", split)])
        assert [place.path for place in places] == [str(tmp_path / split / "rgb" / f"{n}.mp4") for n in (1, 2)]
    with pytest.raises(InputError, match=r"list: '1.mp4' can be .*train/rgb/1.mp4 or .*; write more of the path"):
        Places(tmp_path, search=True).find([Wanted("1.mp4", "list")])


@pytest.mark.parametrize(
    ("files", "names", "found"),
    [
        # one is there as it is written: the other is missing, though there is one of its name elsewhere
        (["b1/a/1.mp4", "b2/a/2.mp4"], ["b1/a/1.mp4", "b1/a/2.mp4"], ["b1/a/1.mp4", None]),
        (["a/1.avi", "x/a/2.avi"], ["a/1.npy", "a/2.npy"], ["a/1.avi", None]),
        (["1.mp4", "x/2.mp4"], ["1.mp4", "2.mp4"], ["1.mp4", None]),
        # all are in one other folder; what is missing stays so
        (["x/a/1.mp4", "x/b/2.mp4"], ["y/a/1.mp4", "y/b/2.mp4"], ["x/a/1.mp4", "x/b/2.mp4"]),
        (["x/a/1.mp4", "x/b/2.mp4"], ["a/1.mp4", "b/2.mp4"], ["x/a/1.mp4", "x/b/2.mp4"]),
        (["a/1.mp4", "b/2.mp4"], ["/y/z/a/1.mp4", "/y/z/b/2.mp4"], ["a/1.mp4", "b/2.mp4"]),
        (["x/a/1.mp4", "z/a/1.mp4", "x/b/2.mp4"], ["y/a/1.mp4", "y/b/2.mp4"], ["x/a/1.mp4", "x/b/2.mp4"]),
        (["x/a/1.mp4", "x/b/2.mp4"], ["y/a/1.mp4", "y/b/2.mp4", "y/b/3.mp4"], ["x/a/1.mp4", "x/b/2.mp4", None]),
        # each would be in another one
        (["x/a/1.mp4", "z/b/2.mp4"], ["y/a/1.mp4", "y/b/2.mp4"], [None, None]),
        (["x/a/1.mp4", "x/b/2.mp4"], ["y/a/1.mp4", "z/b/2.mp4"], [None, None]),
    ],
)
def test_one_rule_finds_all_paths_of_a_list_or_they_are_missing(tmp_path, files, names, found):
    places = Places(touch(tmp_path, *files), search=True)
    got = places.find([Wanted(name, "train.txt, line 1", "train") for name in names], all_of_them=True)
    assert [Path(place.path).relative_to(tmp_path).as_posix() if place.there else None for place in got] == found


def test_a_folder_that_is_called_otherwise_than_two_is_an_error(tmp_path):
    places = Places(touch(tmp_path, "train/a/1.mp4", "val/a/1.mp4"), search=True)
    with pytest.raises(InputError, match=r"test.txt, line 1: 'tset/a/1.mp4' can be .*train/a/1.mp4 or .*val/a/1.mp4"):
        places.find([Wanted("tset/a/1.mp4", "test.txt, line 1", "test")])


def test_a_file_that_is_there_as_written_is_taken_whatever_its_ending(tmp_path):
    places = Places(touch(tmp_path, "a.raw", "x/a.mp4"), search=True)
    assert places.find([Wanted("a.raw", "")], all_of_them=True) == [Place(str(tmp_path / "a.raw"), True)]


def test_links_to_folders_are_looked_through_once(tmp_path):
    touch(tmp_path / "disk", "train/run/a.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/videos").symlink_to(tmp_path / "disk")
    (tmp_path / "root/again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/circle").symlink_to(tmp_path)
    places = Places(tmp_path / "root", search=True)
    (place,) = places.find([Wanted("a", "list.txt, line 1")], all_of_them=True)
    assert place == Place(str(tmp_path / "root/again/train/run/a.mp4"), True)


def test_without_a_search_paths_are_as_written(tmp_path):
    places = Places(touch(tmp_path, "videos/a.mp4"), search=False)
    assert places.find([Wanted("a.mp4", "")]) == [Place(str(tmp_path / "a.mp4"), False)]
    assert places.find([Wanted("videos\\a.mp4", "")]) == [Place(str(tmp_path / "videos" / "a.mp4"), None)]
