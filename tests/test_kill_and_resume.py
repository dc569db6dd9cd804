"""Training that is killed with SIGKILL and goes on, in earnest; kill_and_resume.py does it more often."""

import pytest
from kill_and_resume import curves, differences, kill_and_resume

from lightning_csn.cli import main


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    assert main(["make-motion", str(root), "--train=2", "--val=1", "--test=1"]) == 0
    return root


def test_a_run_that_is_killed_again_and_again_gives_what_one_left_alone_gives(motion, tmp_path):
    found = kill_and_resume(motion, tmp_path, kills=3, epochs=6, seed=1)
    assert found["differences"] == []
    assert sum(found["kills"].values()) >= 1  # a quick machine is through before the others
    assert found["steps"] == 24


def test_a_difference_in_the_last_bit_is_seen(tmp_path):
    one = {"weights": [1.0, {"a": 2}], "step": 3}
    assert differences(one, {"weights": [1.0, {"a": 2}], "step": 3}) == []
    assert differences(one, {"weights": [1.0 + 2**-52, {"a": 2}], "step": 4}) == [
        "/weights/0: 1.0 and 1.0000000000000002",
        "/step: 3 and 4",
    ]
    for version, value in enumerate((0.5, 0.25)):
        (tmp_path / f"version_{version}").mkdir()
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(f"epoch,step,train_loss\n0,1,{value}\n")
    assert curves(tmp_path) == {("1", "train_loss"): {"0.5", "0.25"}}
