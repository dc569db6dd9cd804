"""Strips of frames."""

from io import BytesIO

from PIL import Image

from lightning_csn.data.filmstrip import take_strips


def test_strips_are_of_three_frames_and_of_videos_alone(tmp_path, make_video):
    good = make_video(tmp_path / "a.mp4", frames=6)
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    strips = dict(take_strips([str(good), str(text), str(tmp_path / "gone.mp4")], workers=1, seconds=60))
    assert set(strips) == {str(good)}
    with Image.open(BytesIO(strips[str(good)])) as image:
        assert (image.format, image.size) == ("JPEG", (3 * 128, 96))
