# `make demo` and `make test` need nothing but Python 3.11 or newer with its venv module.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := agents cco llr model_sync

.PHONY: help demo test lint types check bench format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into $(VENV) and watch a year of purchases stream through the engine"
	@echo "make test    everything that CI runs: style, types, import contract, tests"
	@echo "make bench   the numbers in README.md"
	@echo "make format  let ruff format the sources"
	@echo "make clean   remove $(VENV) and all caches"

# One virtual environment; a stamp file in it for each set of extras, so that installing happens once.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "streaming-cco needs Python 3.11 or newer; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Could not create $(VENV): on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml requirements.lock
	@echo "Installing into $(VENV) with the $* extra (versions: requirements.lock) ..."
	@$(PIP) install --constraint requirements.lock --editable '.[$*]'
	@touch $@

# Kernels are compiled when they are first used, and kept: once for each version of their sources.
$(VENV)/.compiled: $(VENV)/.installed-demo $(wildcard llr/*.py cco/*.py model_sync/*.py)
	@echo "Compiling the kernels (once, about a minute) ..."
	@$(BIN)/cco demo --events 1000 --json > $(VENV)/warm-up.json
	@touch $@

demo: $(VENV)/.compiled
	@$(BIN)/cco demo

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy

check: $(VENV)/.installed-test $(VENV)/.compiled
	$(BIN)/pytest -q -n 2

test: lint types check

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.PRECIOUS: $(VENV)/.installed-%
