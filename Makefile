# make demo: from nothing to a tested network, with the answers on a picture.  make test: environment, lint, types, tests.
# make gpu: what only an NVIDIA GPU can show, into gpu/: the files of tests that find one to run on; tuned kernels; every
#   layer alone; a training step by the kernels, fused, compiled, and in CUDA graphs; the largest batch; answers.
# PYTHON names the interpreter that the environment is made with (3.10 or newer); VENV where it lies.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types suite gpu clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py

test: lint types suite

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy

suite: $(VENV)/ready-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

NETWORK := --architecture ircsn_152 --clip 32x224x224 --batch 8 --precision bf16

gpu: $(VENV)/ready-dev
	mkdir -p gpu
	$(BIN)/python -m pytest tests/test_depthwise.py tests/test_fused.py tests/test_training_speed.py tests/test_augment.py tests/test_callbacks.py
	$(BIN)/lightning-csn benchmark train $(NETWORK) --tune --json > gpu/tuned.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --layers --json > gpu/layers.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend triton --json > gpu/kernels.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend fused --json > gpu/fused.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend fused --compile --json > gpu/fused_compiled.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend fused --compile reduce-overhead --json > gpu/fused_compiled_graphs.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend fused --cuda-graphs --json > gpu/fused_graphs.json
	$(BIN)/lightning-csn benchmark train $(NETWORK) --backend fused --find-batch --json > gpu/fused_batch.json
	$(BIN)/lightning-csn benchmark infer $(NETWORK) --backend fused --json > gpu/infer.json

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, $(PYTHON) is ' + sys.version.split()[0] + '; name another one: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/ready-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/ready

clean:
	rm -rf $(VENV) demo gpu build dist .mypy_cache .pytest_cache .ruff_cache
