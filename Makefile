# make demo: from nothing to a tested network, with the answers on a picture.  make test: environment, lint, types, tests.
# PYTHON names the interpreter that the environment is made with (3.10 or newer); VENV where it lies.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types suite clean

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
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache
