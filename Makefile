# Two commands do everything from a bare machine: `make demo` and `make test`. `make help` explains the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TALSTACK := $(BIN)/talstack

# The data set (made by `talstack import`), the run's folder, and the settings (`talstack init` writes a file).
DATA ?= runs/demo/data
RUN ?= runs/demo
CONFIG ?= $(if $(filter runs/demo,$(RUN)),demo/demo.toml)
STORE ?= $(RUN)/store
BACKBONE ?= $(RUN)/backbone
SPLIT ?= test
FORMAT ?= binego360
JOBS ?= 0

config_option = $(if $(CONFIG),--config $(CONFIG))
# folders named extract/, heads/ ... stand at the root: keep the root off sys.path, or `import io` could find ours
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install install-dev demo demo-data finetune extract heads submit lint format test test-slow links wheel clean

help: ## what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATA=$(DATA)  RUN=$(RUN)  CONFIG=$(CONFIG)  STORE=$(STORE)  SPLIT=$(SPLIT)  FORMAT=$(FORMAT)  JOBS=$(JOBS)"

install: $(VENV)/.installed ## the virtual environment with talstack and what it needs
install-dev: $(VENV)/.installed-dev ## the same with what tests and checks need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "talstack needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml constraints.txt | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: demo-data finetune extract heads submit ## sample data to scored submission, about 10 minutes on 2 cores
	@echo "files: $(RUN)/submission.csv scene_submission.csv detections.json metrics.json provenance.json"

demo-data: runs/demo/data/dataset.toml ## the sample data set: rendered recordings, and their manifest in runs/demo/data

runs/demo/data/dataset.toml: | install
	$(TALSTACK) demo-data runs/demo/sample --jobs $(JOBS)
	$(TALSTACK) import binego360 runs/demo/sample --out runs/demo/data --folds 4

finetune: install ## stage one: train the backbone on DATA into BACKBONE
	$(TALSTACK) finetune $(DATA) --out $(BACKBONE) --jobs $(JOBS) $(config_option)

extract: install ## stage one: features of every view of DATA into STORE, with BACKBONE where there is one
	$(TALSTACK) extract $(DATA) --store $(STORE) --jobs $(JOBS) $(config_option) \
	  $$(test ! -f $(BACKBONE)/card.json || echo --backbone $(BACKBONE))

heads: install ## stage two: heads on the stored features, out-of-fold table into RUN
	$(TALSTACK) heads $(DATA) --store $(STORE) --run $(RUN) --jobs $(JOBS) $(config_option)

submit: install ## ensemble, intervals, submission and scores of SPLIT into RUN
	$(TALSTACK) submit $(DATA) --store $(STORE) --run $(RUN) --split $(SPLIT) --format $(FORMAT) $(config_option) \
	  --out $(RUN)/submission$(if $(filter activitynet,$(FORMAT)),.json,.csv)

links: # the packages under their import names, for mypy: it cannot follow an editable install's hook
	@mkdir -p build/links/talstack
	@for room in io evaluate extract heads ensemble demo cli; do ln -sfn ../../../$$room build/links/talstack/$$room; done

lint: install-dev links ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install-dev ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

test-slow: install-dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

wheel: install-dev ## a wheel in dist/
	rm -rf build/lib dist
	$(BIN)/python -m build --wheel

clean: ## caches and builds, not runs/ and not .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
