# `make demo` and `make test` set up everything they need: their own environment in .venv, then the package.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
# Two PyTorch threads beside one reading process suit small machines; give THREADS=8 on a larger one.
THREADS ?= 2

.PHONY: demo test lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .[dev]
	touch $@

demo: $(VENV)/.installed
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python scripts/demo.py $(DEMO)

test: $(VENV)/.installed
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
