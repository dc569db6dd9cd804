"""The table of layouts: what is said where none of them fits."""

import pytest
from conftest import touch

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.layouts import LAYOUTS
from lightning_csn.errors import InputError


def test_every_layout_is_looked_for_by_name_in_the_message_of_none(tmp_path):
    touch(tmp_path, "run/a.txt")
    with pytest.raises(InputError) as caught:
        find_samples(tmp_path)
    for name, row in LAYOUTS.items():
        assert (f"\n  {name}: {row.looks_for}" in str(caught.value)) is not row.chosen


def test_a_layout_that_is_named_and_not_there(tmp_path):
    touch(tmp_path, "run/a.mp4")
    for name in LAYOUTS:
        if name != "folders":
            with pytest.raises(InputError, match=rf"looked for\n  {name}: "):
                find_samples(tmp_path, layout=name)
    with pytest.raises(InputError, match=r"layout must be one of ucf101, hmdb51, .*got 'ucf'"):
        find_samples(tmp_path, layout="ucf")
    with pytest.raises(InputError, match="fold must be one of 1, 2, 3, got 4"):
        find_samples(tmp_path, fold=4)
