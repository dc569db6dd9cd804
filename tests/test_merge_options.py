"""Which option wins, of those that a checkpoint holds and those that were given by hand."""

import pytest

from lightning_csn.errors import InputError
from lightning_csn.merge_options import merge_settings


def test_what_the_optimiser_goes_on_with_is_the_default_where_a_checkpoint_does_not_know_an_option():
    options = {"resume": True, "defaults": {"layer_decay": 1.0, "lr_end": 0.0}, "typed": {"layer_decay", "lr_end"}}
    before = {"lr": 0.125}  # of a version that did not know the others
    assert merge_settings(before, {"layer_decay": 1.0, "lr_end": 0.0}, **options)["layer_decay"] == 1
    with pytest.raises(InputError, match=r"layer_decay 0.5: the run to go on with has layer_decay 1.0"):
        merge_settings(before, {"layer_decay": 0.5}, **options)


@pytest.mark.parametrize(
    ("name", "held", "kept"),
    [("teacher", "weights", None), ("class_weights", "balanced", None), ("stage_lrs", {"stem": 0.0}, {})],
)
def test_null_takes_away_what_a_checkpoint_has(name, held, kept):
    options = {"typed": {name}, "defaults": {name: None}}
    before = {name: held, "classes": ["run", "walk"]}
    merged = merge_settings(before, {name: None, "classes": None}, **options, resume=False)
    assert merged == {name: kept, "classes": ["run", "walk"], "pretrained": None}  # that of classes says nothing


@pytest.mark.parametrize("name", ["lr_batch", "stage_lrs"])
def test_null_is_refused_where_the_optimiser_goes_on_with_something(name):
    options = {"typed": {name}, "defaults": {"lr_batch": None, "stage_lrs": None}, "resume": True}
    with pytest.raises(InputError, match=f"--model.{name} (None|{{}}): the run to go on with has {name}"):
        merge_settings({"lr_batch": 8, "stage_lrs": {"stem": 0.0}}, {name: None}, **options)
    merge_settings({"lr_batch": None, "stage_lrs": {}}, {name: None}, **options)
    merge_settings({}, {name: None}, **options)  # of a version that had neither
