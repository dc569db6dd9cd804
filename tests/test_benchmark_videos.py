"""The videos of benchmark data: the one that is made, and packed copies."""

import pytest
import torch

from lightning_csn.benchmark_videos import find_packed, open_source, pack_copies, write_video
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError


def test_shards_of_the_same_videos_are_found_by_what_they_were_packed_of(make_video, tmp_path):
    folder = tmp_path / "videos"
    sources = [open_source(str(make_video(folder / name, frames=n))) for name, n in (("a.mp4", 8), ("b.mp4", 12))]
    pack_copies(sources, str(tmp_path / "packed"))
    first, second = [source.packed for source in sources]
    assert "#000000" in first
    assert "#000001" in second
    again = open_source(str(folder / "b.mp4"))
    find_packed([again], str(tmp_path / "packed"))
    assert again.packed == second
    with pytest.raises(InputError, match=r"it holds no copy of .*c\.mp4"):
        find_packed([open_source(str(make_video(tmp_path / "c.mp4")))], str(tmp_path / "packed"))
    make_video(folder / "a.mp4", frames=20)
    with pytest.raises(InputError, match=r"has 8 frames, .*a\.mp4 20"):
        find_packed([open_source(str(folder / "a.mp4"))], str(tmp_path / "packed"))


def test_the_made_video_is_the_same_every_time(tmp_path):
    paths = [write_video(str(tmp_path / name), seconds=0.2, size=(32, 48)) for name in ("a.mp4", "b.mp4")]
    with Video(paths[0]) as one, Video(paths[1]) as other:
        assert one.info.fps == 30
        frames = one.frames(range(6))
        assert torch.equal(frames, other.frames(range(6)))
    assert float((frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3)).min()) > 1  # it moves
    assert float(frames.float().std()) > 20
