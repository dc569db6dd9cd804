"""The bars of `lightning-csn benchmark`."""

import pytest

from lightning_csn.benchmark_report import plot

WAY = {"name": "ours", "form": "folded", "layout": "contiguous", "ms_per_step": 8.0, "error": None}


@pytest.mark.parametrize("ways", [[], [WAY]])
@pytest.mark.parametrize(("floors", "legends"), [({}, 0), ({"fp32": None}, 0), ({"bf16": None, "fp32": 0.002}, 1)])
def test_floors_in_seconds_have_a_legend_and_nothing_has_none(ways, floors, legends, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, legend = [], Axes.legend
    monkeypatch.setattr(Axes, "legend", lambda axes, **options: drawn.append(axes) or legend(axes, **options))
    result = {
        "settings": {"batch": 2, "clip": [4, 32, 32], "architecture": "ircsn_tiny"},
        "machine": {"threads": 1},
        "ways": ways,
        "floors": {name: {"seconds": seconds} for name, seconds in floors.items()},
    }
    plot(result, str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").stat().st_size > 0
    assert len(drawn) == legends
