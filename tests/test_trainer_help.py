"""The pages of the Trainer's commands."""

import re

import lightning.pytorch  # noqa: F401 - its loggers keep the stderr that they find, which must not be one test's

from lightning_csn.cli import main
from lightning_csn.trainer_help import TRAINER_COMMANDS


def test_help_all_explains_every_option_and_the_short_page_names_none_that_is_not_there(capsys):
    """The short pages are written by hand, the long one comes from the signatures."""
    for command in TRAINER_COMMANDS:
        assert main([command, "--help_all"]) == 0
        everything = capsys.readouterr().out
        assert main([command, "--help"]) == 0
        short = capsys.readouterr().out
        flags = set(re.findall(r"--[\w.]+", re.sub(r"(?s)^usage.*?\n\n|examples:.*", "", short))) - {"--help_all"}
        assert {flag for flag in flags if flag not in everything} == set()
    assert "lr: highest learning rate".replace("lr: h", "H") in everything  # of the docstring of LitCSN
