# Everything runs inside .venv, which is made from constraints.txt when it is first needed and
# brought up to date when constraints.txt or pyproject.toml changes.

PYTHON ?= python3
SEED ?= 0
# Further options of the demo or of pytest, e.g. make demo ARGS="--total-timesteps 64000"
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
JAXMARL_TESTS := tests/test_jaxmarl.py tests/test_jaxmarl_errors.py tests/test_jaxmarl_learning.py \
	tests/test_jaxmarl_settings.py tests/test_jaxmarl_states.py
PIP_INSTALL := $(BIN)/python -m pip install -qq --progress-bar off --constraint constraints.txt

# Networks this small run several times slower on several threads than on one.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-jaxmarl test-slow bench lint types

help:  ## list what make can do
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(INSTALLED)  ## install the pinned versions into .venv

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "constraints.txt needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=/path/to/python")'
	@echo "Installing into .venv; the first time takes some minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first: which build of it (CPU or CUDA) is settled before anything asks for any torch.
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) --editable '.[demo,mpe,zoo,tuning,postgresql,test,dev]'
	@touch $@

demo: $(INSTALLED)  ## train on AliceAndBob-v0 and show the result in runs/ (SEED=0, ARGS=...)
	@$(BIN)/python -m hmasd_sb3.demo --seed $(SEED) $(ARGS)

test: $(INSTALLED)  ## run the quick tests (ARGS=...)
	@$(PYTEST) $(JAXMARL_TESTS:%=--ignore=%) $(ARGS)

# Apart from the others: JAX runs threads of its own, and other tests fork worker processes.
test-jaxmarl: $(INSTALLED)  ## add JAX and JaxMARL to .venv (some 600 MB) and run their tests (ARGS=...)
	@echo "Installing JaxMARL into .venv; the first time takes some minutes ..."
	@$(PIP_INSTALL) --editable '.[jaxmarl]'
	@$(PYTEST) $(JAXMARL_TESTS) $(ARGS)

test-slow: $(INSTALLED)  ## run the tests that take long (ARGS=...)
	@$(PYTEST) $(JAXMARL_TESTS:%=--ignore=%) -m slow $(ARGS)

# Some ten minutes on an idle machine; --resume goes on after an interruption. The last one fails where memory grew.
bench: $(INSTALLED)  ## measure speed and memory into benchmarks/results/ (ARGS=--resume)
	@$(BIN)/python benchmarks/throughput.py --setting all --threads 1 default $(ARGS)
	@$(BIN)/python benchmarks/profile_training.py $(ARGS)
	@$(BIN)/python benchmarks/scaling.py $(ARGS)
	@$(BIN)/python benchmarks/long_run.py --setting cheap $(ARGS)

lint: $(INSTALLED)  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)  ## check types
	@$(BIN)/mypy
