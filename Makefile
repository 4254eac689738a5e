# kpipe: `make demo` and `make test` do everything from a fresh clone with only Python 3.11+ and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Real data sets beside the checkout, where they exist; else they come from keras.datasets.
ifneq ($(wildcard ../shared/data),)
export KPIPE_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help install demo test docs lint slow bench arm64-check clean
help:            ## list the targets
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 16

install: $(STAMP) ## make .venv and install kpipe with its pinned dependencies
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kpipe needs Python 3.11 or newer; set PYTHON=...")'
	@echo "[1/2] creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/2] installing kpipe and its dependencies (about 2.7 GB, a minute or two)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)   ## compress a small network on scikit-learn's digits and print what it brought
	@$(BIN)/kpipe run recipes/digits.yaml

test: $(STAMP)   ## run the test suite (the heavy sweeps: make slow)
	@$(BIN)/python -m pytest -n 2 -m "not slow" --durations=40

slow: $(STAMP)   ## run the heavy sweeps
	@$(BIN)/python -m pytest -m slow

docs: $(STAMP)   ## run every block of Python of the README and the pages
	@$(BIN)/python -m pytest -n 2 tests/test_readme.py tests/export/test_page.py

lint: $(STAMP)   ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)  ## measure the cost of a training step against plain Keras and TFMOT
	@$(BIN)/python benchmarks/step_overhead.py

arm64-check: $(STAMP) ## run the delivered .tflite files on an emulated ARM processor (as root)
	@$(BIN)/python benchmarks/arm64_check.py

clean:           ## remove the environment and what runs delivered; the benchmarks' results stay
	rm -rf $(VENV) build *.egg-info
	find exported -mindepth 1 ! -name README.md -delete
