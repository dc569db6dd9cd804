"""The command make-motion."""

from lightning_csn.cli import main


def test_make_motion_makes_what_was_asked_for(tmp_path, capsys):
    counts = ["--train", "1", "--val", "0", "--test", "0", "--workers", "1"]
    assert main(["make-motion", str(tmp_path / "motion"), *counts]) == 0
    assert len(list((tmp_path / "motion" / "train").glob("*/*.mp4"))) == 8
    assert "8 classes, videos: 8 train, 0 val, 0 test" in capsys.readouterr().out
