"""launch.py: a launch that was made before is made again without asking Triton what it compiled for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from lightning_csn.models import launch, tiles


class Kernel:
    """Stands in for Triton's: `asked` has the launches that it had to find, `ran` those of what it had compiled."""

    arg_names = ("x_ptr", "norm_ptr", "P", "SIZE")

    def __init__(self):
        self.asked, self.ran, self.checked = [], [], 0

    def __getitem__(self, grid):
        def ask(*tensors, **arguments):
            self.asked.append((grid, *tensors, arguments))
            return Compiled(self)

        return ask

    def check(self):
        self.checked += 1

    def start(self, *tensors, grid=(3, 1, 1), P=5, SIZE=64, num_warps=4):
        launch.start(self, grid, tensors, {"SIZE": SIZE, "num_warps": num_warps, "P": P}, self.check)


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments: self.kernel.ran.append((grid, *arguments))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launch, "_known", {})
    return Kernel()


def test_the_same_launch_again_asks_nothing(kernel):
    x, other = torch.zeros(8), torch.ones(8)
    kernel.start(x, None)
    kernel.start(other, None, grid=(4, 1, 1))  # elsewhere, but of the same kind
    assert kernel.asked == [((3, 1, 1), x, None, {"SIZE": 64, "num_warps": 4, "P": 5})]
    assert kernel.ran == [((4, 1, 1), other, None, 5, 64)]  # by the order of the parameters
    assert kernel.checked == 1


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        ((torch.zeros(8), None), {"P": 6}),
        ((torch.zeros(8), None), {"SIZE": 32}),
        ((torch.zeros(8), None), {"num_warps": 8}),
        ((torch.zeros(8), torch.zeros(8)), {}),
        ((torch.zeros(8, dtype=torch.float16), None), {}),
        ((torch.zeros(10)[2:], None), {}),  # 8 bytes after a multiple of 16, where no 16 bytes can be read at once
        ((torch.zeros(8, device="meta"), None), {}),
    ],
)
def test_another_launch_asks(kernel, tensors, options):
    kernel.start(torch.zeros(8), None)
    kernel.start(*tensors, **options)
    assert len(kernel.asked) == kernel.checked == 2
    assert not kernel.ran


def test_another_kernel_asks(kernel):
    other = Kernel()
    for each in (kernel, other):
        each.start(torch.zeros(8), None)
    assert len(kernel.asked) == len(other.asked) == 1


def test_where_compiling_depends_on_more_every_launch_asks(kernel, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for _ in range(2):
        kernel.start(torch.zeros(8), None)
    assert len(kernel.asked) == 2


def test_sizes_that_are_new_each_time_do_not_pile_up(kernel, monkeypatch):
    monkeypatch.setattr(tiles, "MOST_SIZES", 2)
    for size in range(7):
        kernel.start(torch.zeros(8), None, P=size)
    assert len(launch._known) == 1
    kernel.start(torch.zeros(8), None, P=6)
    assert len(kernel.ran) == 1


def test_a_kernel_that_fails_its_check_is_launched_by_that_alone(kernel, monkeypatch):
    checking = []

    def fail():
        if not checking:
            checking.append(True)
            kernel.start(torch.ones(8), None)  # as the check does, with tensors of its own
            checking.clear()
            raise RuntimeError("a kernel disagrees")

    monkeypatch.setattr(kernel, "check", fail)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="disagrees"):
            kernel.start(torch.zeros(8), None)
    assert [tensor.sum() for _, tensor, *_ in kernel.asked] == [8, 8, 8]
    assert not kernel.ran


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_a_repeated_launch_hands_over_what_triton_did():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "host_time.py"), "--again"]
    out = subprocess.run(script, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    names = ("depthwise", "its weight gradient", "product", "statistics", "gradient")
    assert out.splitlines() == [
        *(f"{name}: 1 launched, the same" for name in names),
        "a block, own products: 16 launched, the same",
        "a block of stride 2, library's products: 21 launched, the same",
    ]
