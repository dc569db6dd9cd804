"""Names on disk: which folders are videos in pictures, and what lies in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import touch

from lightning_csn.data.names import files_in, folders_in, holds_frames, list_videos
from lightning_csn.errors import InputError


@pytest.mark.parametrize(
    ("files", "frames"),
    [
        (["00001.jpg", "00002.jpg", "audio.wav"], True),
        (["img_0.PNG"], True),
        (["cover.jpg"], False),
        ([".00001.jpg"], False),
        (["00001.jpg", "a.mp4"], False),  # thumbnails beside videos
        (["00001.jpg", "more/00001.jpg"], False),
        (["a.txt"], False),
    ],
)
def test_a_folder_is_a_video_if_it_holds_numbered_pictures_and_nothing_that_holds_videos(tmp_path, files, frames):
    assert holds_frames(touch(tmp_path, *files)) is frames
    assert not holds_frames(tmp_path / "nowhere")


def test_videos_of_a_folder_are_its_files_and_where_there_are_none_its_folders_of_pictures(tmp_path):
    touch(tmp_path, "x/1/001.jpg", "x/2/001.jpg", "x/.h/001.jpg", "notes.txt")
    assert list_videos(tmp_path) == [str(tmp_path / "x/1"), str(tmp_path / "x/2")]
    assert list_videos(tmp_path / "x/1") == [str(tmp_path / "x/1")]
    touch(tmp_path, "b.mp4", "more/A.webm", ".e.mp4")
    assert list_videos(tmp_path) == [str(tmp_path / "b.mp4"), str(tmp_path / "more/A.webm")]
    assert list_videos(tmp_path / "b.mp4") == [str(tmp_path / "b.mp4")]
    with pytest.raises(InputError, match="no such file or folder"):
        list_videos(tmp_path / "f.mp4")


def test_a_folder_that_may_not_be_read_is_passed_over_and_said_once(tmp_path, monkeypatch, caplog):
    touch(tmp_path, "lost+found/x", "run/a.mp4")
    for name in ("scandir", "listdir"):
        real = getattr(os, name)

        def refuse(folder, real=real):
            if Path(folder).name == "lost+found":
                raise PermissionError(13, "Permission denied", os.fspath(folder))
            return real(folder)

        monkeypatch.setattr(os, name, refuse)
    assert list_videos(tmp_path) == [str(tmp_path / "run/a.mp4")]
    assert folders_in(tmp_path / "lost+found") == files_in(tmp_path / "lost+found", (".txt",)) == []
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/lost+found: the folder is passed over: Permission denied"
    ]


def test_links_that_end_nowhere_or_in_a_circle_are_passed_over(tmp_path):
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "run" / "above").symlink_to(tmp_path)
    assert folders_in(tmp_path) == [tmp_path / "run"]
    assert not holds_frames(tmp_path)
    assert list_videos(tmp_path) == [str(tmp_path / "run" / "a.mp4")]
