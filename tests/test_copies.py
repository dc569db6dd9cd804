"""Which videos are copies of one another."""

import os

from lightning_csn.data.copies import find_copies
from lightning_csn.data.index import stamp_of


def test_copies_are_files_of_the_same_bytes(tmp_path):
    content = {"a": b"xyz", "b": b"xyy", "c": b"xyz", "d": b"xyzz", "empty": b"", "void": b""}
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    stamps = {str(path): stamp_of(path) for path in tmp_path.iterdir()} | {str(tmp_path): stamp_of(tmp_path)}
    groups = find_copies(stamps, workers=2)
    assert [[os.path.basename(path) for path in group] for group in groups] == [["a", "c"], ["d", "link"]]


def test_videos_in_shards_are_compared_like_files(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(512) + b"film" + b"film" + b"mess")
    paths = [f"{tmp_path / 'x.tar'}?{512 + 4 * i}+4#{i}.mp4" for i in range(3)]
    assert find_copies({path: stamp_of(path) for path in paths}) == [paths[:2]]
