"""The floors of the house: imports go down, wings do not meet, and importing costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_csn

PACKAGE = Path(lightning_csn.__file__).parent
FLOORS = {  # a file may import files of its own wing, and of lower floors
    "ground": {"errors", "clip"},
    "models": {f"models.{path.stem}" for path in (PACKAGE / "models").glob("*.py")},
    "data": {f"data.{path.stem}" for path in (PACKAGE / "data").glob("*.py")},
    "roof": {
        "module",
        "clip_module",
        "loss",
        "metrics",
        "optimizer",
        "unfreezing",
        "mixing",
        "ema",
        "distillation",
        "fingerprints",
        "scores",
        "scores_writer",
        "datamodule",
        "predict",
        "visualize",
        "callbacks",
        "precise_bn",
        "last_checkpoint",
        "sharding",
        "processes",
        "runner",
        "export",
        "answers",
        "many",
        "feature_file",
        "features",
        "probe",
    },
    "door": {
        "__init__",
        "__main__",
        "cli",
        "trainer_commands",
        "benchmark",
        "benchmark_data",
        "benchmark_decoding",
        "benchmark_layers",
        "benchmark_machine",
        "benchmark_readers",
        "benchmark_reading",
        "benchmark_report",
        "benchmark_settings",
        "benchmark_text",
        "benchmark_videos",
        "benchmark_ways",
        "benchmark_workers",
        "data_source",
        "terminal",
        "trainer_help",
        "merge_options",
        "resumed_run",
        "classify_videos",
        "weights_commands",
        "make_motion",
        "check_data",
        "check_text",
        "check_page",
        "split_data",
        "pack_data",
        "average",
        "export_model",
        "extract_features",
        "fit_probe",
    },
}
BELOW = {
    "ground": set(),
    "models": {"ground"},
    "data": {"ground"},
    "roof": {"ground", "models", "data"},
    "door": {"ground", "models", "data", "roof"},
}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    """Names of our own files that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_csn"):
            module = node.module.removeprefix("lightning_csn").strip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".strip(".")
                yield inner if (PACKAGE / (inner.replace(".", "/") + ".py")).exists() else module
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("lightning_csn.") for a in node.names if a.name.startswith("lightning_csn.")
            )


def floor_of(name):
    floors = [floor for floor, names in FLOORS.items() if name in names]
    assert floors, f"{name} stands on no floor: put it into one of FLOORS"
    return floors[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_imports_only_go_down(path):
    floor = floor_of(name_of(path))
    for imported in imports(path):
        if imported:  # the package itself, for its version
            assert floor_of(imported) in BELOW[floor] | {floor}, f"{name_of(path)} imports {imported}"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"torch", "lightning", "av", "timm", "torchvision", "numpy", "huggingface_hub"}
    loaded = run("import sys, lightning_csn; print(*sys.modules)").split()
    assert not heavy & set(loaded)


def test_networks_and_litcsn_work_where_no_video_library_is_installed():
    run(
        "import sys; sys.modules['av'] = None\n"  # None makes every import of it fail
        "import torch, lightning_csn\n"
        "network = lightning_csn.LitCSN('ircsn_tiny', num_classes=3).network.eval()\n"
        "assert network(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 3)\n"
    )


def test_public_names_are_there_and_no_others():
    for name in lightning_csn.__all__:
        assert getattr(lightning_csn, name).__name__ == name
        assert name in dir(lightning_csn)
    with pytest.raises(AttributeError, match="no attribute 'LitCNS'"):
        lightning_csn.LitCNS  # noqa: B018 - reading it is the test


def test_trap_nothing_hangs_on_video_readers_that_went_away():
    """torchvision has no read_video since 0.26, decord no release since 2021; webdataset's decoder calls the former."""
    import torchvision

    assert not hasattr(torchvision.io, "read_video")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith(("torchvision.io", "torchvision.datasets", "webdataset")), f"{path}: {name}"
                assert not name.startswith("decord") or path.stem == "benchmark_readers", f"{path}: {name}"
