"""The wheel: what it holds is enough to work from any folder, without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel is installed into, by itself; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("*.whl"))
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True
    )
    return folder


def test_the_bundled_network_loads_from_another_folder_with_no_network(installed):
    code = (
        "import lightning_csn, torch\n"
        "assert lightning_csn.__file__.startswith(SITE), lightning_csn.__file__\n"
        "model = lightning_csn.LitCSN.from_pretrained('ircsn_tiny_motion')\n"
        "clip = model.clip\n"
        "video = torch.zeros(1, 1, 3, clip.frames, clip.test_crop, clip.test_crop, dtype=torch.uint8)\n"
        "print(model(video).sum().item(), len(lightning_csn.list_checkpoints()), *model.classes)\n"
    )
    site = str(installed / "site")
    environment = os.environ | {"PYTHONPATH": site, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"SITE = {site!r}\n{code}"]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, count, *classes = done.stdout.split()
    assert float(total) == pytest.approx(1)
    assert int(count) >= 29
    assert len(classes) == 8


def test_it_holds_the_package_and_nothing_else(installed):
    names = zipfile.ZipFile(next(installed.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lightning_csn"}
    assert {"lightning_csn/checkpoints.json", "lightning_csn/py.typed"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
