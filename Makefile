# `make demo` needs nothing but Python 3.11 or newer with its venv module; what runs a Kafka or an Elasticsearch (`make
# demo-kafka`, `make demo-stack`, `make test`, `make soak`, `make bench`, `make kafka`, `make elasticsearch`) also Java
# and Maven, which it installs on Debian and Ubuntu.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := agents cco llr model_sync
SERVERS := .servers
KAFKA_PORT ?= 9092
ELASTICSEARCH_PORT ?= 9200
SOAK ?= --kills 100
DAY ?= --events 1000000
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo )
APT_GET := $(AS_ROOT)env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300

.PHONY: help demo demo-kafka demo-stack test lint types check soak bench servers kafka elasticsearch format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        install into $(VENV) and watch a year of purchases stream through the engine"
	@echo "make demo-kafka  the same through a real Kafka and two workers, with a kill -9 in the middle"
	@echo "make demo-stack  purchases through Kafka into Elasticsearch, and recommendations by HTTP, all of it real"
	@echo "make test        everything that CI runs: style, types, import contract, tests"
	@echo "make soak        workers killed 100 times, the scripted day (kappa, lambda and back) with a million events, and"
	@echo "                 a node that stands still for a minute;"
	@echo "                 SOAK='--steady 30': half an hour at half of the highest rate; DAY='--events 100000'"
	@echo "make bench       the numbers in README.md"
	@echo "make kafka       run an Apache Kafka broker here, on port $(KAFKA_PORT) (KAFKA_PORT=...), until Ctrl-C"
	@echo "make elasticsearch"
	@echo "                 run an Elasticsearch node here, on port $(ELASTICSEARCH_PORT) (ELASTICSEARCH_PORT=...), until Ctrl-C"
	@echo "make format      let ruff format the sources"
	@echo "make clean       remove $(VENV) and all caches"

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

$(VENV)/.compiled-worker: $(VENV)/.compiled $(VENV)/.installed-kafka $(wildcard agents/*.py agents/*/*.py)
	@echo "Compiling the kernels of workers (once, about a minute) ..."
	@$(BIN)/python -m agents.warm_up > $(VENV)/warm-up-worker.txt
	@touch $@

demo: $(VENV)/.compiled
	@$(BIN)/cco demo

demo-kafka: $(VENV)/.compiled-worker servers
	@$(BIN)/python -m tests.kafka.demo

demo-stack: $(VENV)/.compiled-worker $(VENV)/.installed-elasticsearch servers
	@$(BIN)/python -m tests.stack.demo

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-test
	$(BIN)/mypy

# The real servers that tests and the demo run against, fetched once; before the tests, so that they do not wait for it.
servers: $(VENV)/.created
	@command -v java >/dev/null && command -v mvn >/dev/null || { \
	  echo "Installing Java and Maven, which Kafka and Elasticsearch need ..." && \
	  command -v apt-get >/dev/null && $(APT_GET) update && \
	  $(APT_GET) install --yes --no-install-recommends default-jre-headless maven >/dev/null; } || { \
	  echo "Kafka and Elasticsearch need \`java\` (17 or newer) and \`mvn\` on the PATH, and installing them failed:" >&2; \
	  echo "install them yourself; on Debian and Ubuntu: sudo apt-get install default-jre-headless maven" >&2; exit 1; }
	@$(BIN)/python -m tests.servers.kafka --fetch
	@$(BIN)/python -m tests.servers.elasticsearch --fetch

kafka: servers
	@$(BIN)/python -m tests.servers.kafka --port $(KAFKA_PORT)

elasticsearch: servers
	@$(BIN)/python -m tests.servers.elasticsearch --port $(ELASTICSEARCH_PORT)

check: $(VENV)/.installed-test $(VENV)/.compiled-worker servers
	$(BIN)/pytest -q -n 2

test: lint types check

soak: $(VENV)/.compiled-worker $(VENV)/.installed-test servers
	@$(BIN)/python -m tests.kafka.soak $(SOAK)
	@$(BIN)/python -m tests.stack.day $(DAY)
	@NODE_STANDS_STILL=60 $(BIN)/pytest -q tests/stack/test_workers.py -k stands_still

bench: $(VENV)/.installed-bench servers
	$(BIN)/python -m benchmarks

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(SERVERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.PRECIOUS: $(VENV)/.installed-%
