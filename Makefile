# Everything that one types while working on mhc-train. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-slow check format lint types dead wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml requirements/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/cpu.txt -e '.[corpus]'
	@touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/cpu.txt -e '.[corpus,dev]'
	@touch $@

install: $(VENV)/.installed-dev ## make .venv with everything for development

quickstart: $(STAMP) ## train residual, HC and mHC on real text (minutes) and write a report
	$(BIN)/mhc-train compare experiment=quickstart

test: $(VENV)/.installed-dev ## the test suite, but for the full sweeps of `test-slow`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.installed-dev ## unit tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) tests/unit

test-slow: $(VENV)/.installed-dev ## every kill, corruption and signal that `make test` samples (minutes); records the outcome
	OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= RECORD_SWEEPS=1 $(BIN)/python -m pytest -q -m slow

check: format lint types dead test ## format, lint, types, dead code, tests

format: $(VENV)/.installed-dev ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev ## check the style
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev ## check the types
	$(BIN)/mypy

dead: $(VENV)/.installed-dev ## look for dead code
	$(BIN)/vulture

wheel: $(VENV)/.installed-dev ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
