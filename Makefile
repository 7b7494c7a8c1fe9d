# `make` lists the targets. Everything runs in .venv, which is made from envs/strata.lock.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
CORES ?= all
CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-mergekit
# uv installs the same lock: make results INSTALL="uv pip install --python .venv/bin/python"
INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/installed: envs/strata.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "Strata needs Python 3.11.5 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r envs/strata.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/llama: envs/llama.lock $(VENV)/installed
	CMAKE_ARGS="$(CMAKE_ARGS)" $(INSTALL) -r envs/llama.lock
	touch $@

$(PEER)/installed: envs/mergekit.lock
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -r envs/mergekit.lock
	touch $@

.PHONY: help env results llama peer test test-slow slurm-test check format schema lock

help:       ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

env: $(VENV)/installed  ## the environment alone

results: $(VENV)/installed  ## run the experiment of config.yaml; ends with the report
	$(BIN)/snakemake --cores $(CORES)
	@echo "report: $(CURDIR)/results/report/report.html"

llama: $(VENV)/llama  ## llama.cpp, built from source in some minutes: for GGUF files smaller than f16, and to run them

peer: $(PEER)/installed  ## the environment of mergekit, to compare with

test: $(VENV)/installed  ## the test suite, some twenty minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

test-slow: $(VENV)/llama $(PEER)/installed  ## the slow proofs, on the real model, against mergekit and llama.cpp
	$(BIN)/python -m pytest -m slow

slurm-test: $(VENV)/installed  ## the workflow on a real Slurm of two nodes on this machine: for root on Debian
	$(BIN)/python tests/slurm/cluster.py install
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python tests/slurm/cluster.py run $(BIN)/python -m pytest -m slurm tests/slurm

check: $(VENV)/installed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/python -m strata schema | diff -u workflow/schemas/config.schema.json -
	$(BIN)/python -m strata schema --markdown | diff -u workflow/schemas/config.md -

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/snakefmt Snakefile workflow/rules

schema: $(VENV)/installed  ## write the JSON Schema and the config reference
	$(BIN)/python -m strata schema > workflow/schemas/config.schema.json
	$(BIN)/python -m strata schema --markdown > workflow/schemas/config.md

lock:       ## renew envs/strata.lock from pyproject.toml
	envs/lock.sh
