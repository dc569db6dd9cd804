"""LitCSN(compile=...): a compiled network learns what the network itself learns, and no file shows a trace of it."""

import copy
import pickle
import shutil

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.models import fold as fold_module
from lightning_csn.models.batchnorm import measure_statistics
from lightning_csn.models.fold import cannot_pack, fold
from lightning_csn.models.network import create_network
from lightning_csn.module import LitCSN
from lightning_csn.precise_bn import PreciseBatchNorm
from lightning_csn.unfreezing import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


def make_item(number):
    generator = torch.Generator().manual_seed(number)
    clips = torch.randint(256, (1, 3, 2, 16, 16), generator=generator, dtype=torch.uint8)
    return {"clips": clips, "labels": number % 4, "videos": number, "short": False, "seed": number}


def collate(items):
    batch = torch.utils.data.default_collate(items) | {"unreadable": []}
    return batch | {"seed": batch["seed"].sum().item()}


def loader(first=0):
    return DataLoader([make_item(first + n) for n in range(8)], batch_size=4, collate_fn=collate)


@pytest.fixture
def programs():
    """What was compiled by the backend "counting", which leaves it as it is."""
    made = []

    def counting(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    if "counting" not in torch.compiler.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(lambda *given: COUNTING[0](*given), name="counting")
    COUNTING[:] = [counting]
    yield made
    torch.compiler.reset()


COUNTING = []


@pytest.mark.parametrize("first", ["counting", False])
def test_a_run_goes_on_compiled_or_not_as_if_it_had_been_so_throughout(
    make_trainer, tiny_model, states_equal, tmp_path, programs, first
):
    options = {"network": {"dropout": 0.2, "drop_path": 0.2}}
    whole = tiny_model(**options)
    make_trainer(max_epochs=2).fit(whole, loader())
    assert programs == []
    trainer = make_trainer(max_epochs=1)
    trainer.fit(tiny_model(compile=first, **options), loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert bool(programs) == bool(first)
    half = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert half["hyper_parameters"]["compile"] == first
    assert half["state_dict"].keys() == whole.state_dict().keys()
    resumed = tiny_model(compile=False if first else "counting", **options)
    make_trainer(max_epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert programs
    assert states_equal(resumed.state_dict(), whole.state_dict())


def test_validation_runs_the_network_itself_and_a_test_its_folded_form(
    make_trainer, tiny_model, tmp_path, programs, monkeypatch
):
    folded = []
    monkeypatch.setattr(fold_module, "fold", lambda network: folded.append(network) or fold(network))
    model, trainer = tiny_model(compile="counting"), make_trainer(max_epochs=1)
    trainer.fit(model, loader(), loader(20))
    assert len(programs) == 1  # that of training
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for one in (model, LitCSN.load_from_checkpoint(tmp_path / "last.ckpt")):
        trainer.test(one, loader(20), verbose=False)
    assert len(folded) == (0 if cannot_pack("cpu", torch.float32) else 2)
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("options", "callbacks"),
    [
        ({}, lambda: [EMA(0.5), PreciseBatchNorm()]),
        ({"freeze_bn": "stats"}, lambda: [GradualUnfreezing({"stage4": 1, "stage1": 2})]),
        ({"freeze_bn": "all"}, list),
    ],
    ids=["averages, precise statistics", "unfreezing, frozen statistics", "frozen norms"],
)
def test_callbacks_and_frozen_parts_do_what_they_do_without(
    make_trainer, tiny_model, states_equal, programs, options, callbacks
):
    states = []
    for compile in (False, "counting"):
        model = tiny_model(compile=compile, **options)
        make_trainer(max_epochs=3, callbacks=callbacks()).fit(model, loader(), loader(20))
        states.append(model.state_dict())
    assert states_equal(*states)
    assert len(programs) == (3 if any(isinstance(one, GradualUnfreezing) for one in callbacks()) else 1)


def test_blocks_that_run_a_second_time_draw_and_count_the_same(make_trainer, tiny_model, states_equal):
    states = []
    for compile in (False, "aot_eager"):
        model = tiny_model(compile=compile, checkpointing=[4], network={"drop_path": 0.4, "dropout": 0.2})
        make_trainer(max_steps=1).fit(model, loader())
        states.append(model.state_dict())
    assert states_equal(*states)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_what_inductor_makes_learns_the_same_but_for_rounding(make_trainer, tiny_model, tmp_path, monkeypatch):
    from torch._inductor import codecache

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which goes with the test
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):  # 150 MB for each environment, and of no variable's choice
        monkeypatch.setattr(codecache, name, str(tmp_path / name), raising=False)
    states = []
    for compile in (False, True, "reduce-overhead"):  # which has CUDA graphs on a GPU, and here none
        model = tiny_model(compile=compile)
        for part in ("stem", "stage1", "stage2", "stage3"):  # fewer kernels to compile
            model.network.get_submodule(part).requires_grad_(False)
        make_trainer(max_steps=1).fit(model, loader())
        states.append(model.state_dict())
    for compiled in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("asked", "backend", "mode"),
    [
        (True, "inductor", "default"),
        ("reduce-overhead", "inductor", "reduce-overhead"),
        ("max-autotune", "inductor", "max-autotune"),
        ("eager", "eager", None),
    ],
)
def test_a_mode_and_a_backend_are_told_apart(make_trainer, tiny_model, monkeypatch, asked, backend, mode):
    made = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: made.append(options) or call)
    model = tiny_model(compile=asked)
    make_trainer(max_steps=1).fit(model, loader())
    assert made == [{"backend": backend, "mode": mode}]
    assert model.hparams["compile"] == asked


def test_a_copy_and_a_pickle_of_a_model_in_training_are_of_the_network_alone(make_trainer, tiny_model, programs):
    class Copy(L.Callback):
        def on_train_end(self, trainer, model):
            assert model._compiled is not None
            self.copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]

    keep = Copy()
    model = tiny_model(compile="counting")
    make_trainer(max_steps=1, callbacks=[keep]).fit(model, loader())
    assert [one._compiled for one in (*keep.copies, model)] == [None, None, None]  # and so is what training leaves


def test_statistics_of_a_compiled_network_are_counted_without_compiling_it_anew(states_equal, programs):
    torch.manual_seed(0)
    network, clips = create_network("ircsn_tiny", num_classes=4), torch.randn(4, 3, 2, 16, 16)
    plain = copy.deepcopy(network)
    network.compile(backend="counting")
    for one in (network, plain):
        one(clips)
    assert len(programs) == 1
    for one in (network, plain):
        measure_statistics(one, [clips])
    assert len(programs) == 1
    assert states_equal(network.state_dict(), plain.state_dict())


def test_what_is_no_backend_is_refused(make_trainer, tiny_model):
    with pytest.raises(
        InputError, match=r"compile must be true, false, or the name of a mode \(default, .* or of a backend"
    ):
        tiny_model(compile=3)
    with pytest.raises(
        InputError, match=r"has no mode or backend 'indctor'; modes: default, reduce-overhead, .*inductor"
    ):
        make_trainer(fast_dev_run=True).fit(tiny_model(compile="indctor"), loader())


def test_norms_that_wait_for_other_processes_are_not_compiled(make_trainer, tiny_model):
    model = tiny_model(compile="eager")
    model.trainer = make_trainer(devices=2, strategy="ddp", sync_batchnorm=True)
    with pytest.raises(InputError, match="leave out compile, or sync_batchnorm"):
        model.setup("fit")


SCRIPT = """
import json, os, sys
import lightning as L
import torch
from torch.utils.data import DataLoader
from lightning_csn.module import LitCSN
from lightning_csn.sharding import ShardedStrategy

rank = int(os.environ.get("LOCAL_RANK", 0))
torch.set_num_threads(1)
CLIP = dict(frames=2, step=1, fps=None, short_side=16, crop=16, test_crop=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
states, results = {}, {}


def batch(number, count=2):
    generator = torch.Generator().manual_seed(2 * number + rank)
    clips = torch.randint(256, (2, 1, 3, 2, 16, 16), generator=generator, dtype=torch.uint8)[:count]
    labels = torch.randint(4, (2,), generator=generator)[:count]
    unreadable = [(number, "no such file")] * (2 - count)
    return dict(clips=clips, labels=labels, videos=torch.arange(count), short=labels < 0, unreadable=unreadable)


for name, strategy in (("ddp", "ddp"), ("fsdp2", ShardedStrategy)):
    for compile in (False, "eager"):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP, lr=0.02, schedule="constant", compile=compile)
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy=strategy if isinstance(strategy, str) else strategy(),
            use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, max_epochs=1,
        )
        none = 0 if rank == 1 else 2  # one process has nothing to learn from in a step
        trainer.fit(model, DataLoader([batch(0), batch(1, none), batch(2)], batch_size=None))
        trainer.save_checkpoint(f"{sys.argv[1]}/{name}-{compile}.ckpt")
"""


def test_processes_that_compile_learn_what_others_learn(run_script, tmp_path):
    run_script(tmp_path, SCRIPT, tmp_path)
    for name in ("ddp", "fsdp2"):
        plain, compiled = (
            torch.load(tmp_path / f"{name}-{how}.ckpt", weights_only=True)["state_dict"] for how in (False, "eager")
        )
        assert plain.keys() == compiled.keys()
        for key, tensor in plain.items():
            torch.testing.assert_close(compiled[key], tensor, rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
