# Tessera. `make help` lists the targets; the first one that needs packages creates .venv.
# Variables: W (workspace of `make train`), L (of `make loop`), RANKS (processes), WORKERS (test files
# side by side), DEVICE (cpu or gpu), PYTHON, VENV, TORCH_INDEX (package index with CPU builds of torch,
# asked where yours has none).

VENV ?= .venv
WORKERS ?= 2
W ?= workspaces/demo
L ?= workspaces/loop
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
DEVICE ?= $(if $(filter-out 0,$(GPUS)),gpu,cpu)
RANKS ?= $(if $(filter gpu,$(DEVICE)),$(GPUS),2)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The first of these that is Python 3.11 or newer and can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3 python; do $$python -c \
  'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$python && break; done)

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install
# torchrun gives every process one thread unless told; share the machine's cores out instead.
TORCHRUN = OMP_NUM_THREADS=$$(( $$(nproc) < $(RANKS) ? 1 : $$(nproc) / $(RANKS) )) \
  $(VENV)/bin/torchrun --standalone --nproc-per-node $(RANKS)
PEERS ?= .peers
PEERS_PIP = $(PEERS)/bin/python -m pip --disable-pip-version-check install
REQUIREMENTS := requirements.txt requirements-base.txt requirements-serve.txt requirements-cpu.txt requirements-dev.txt \
  requirements-timm.txt requirements-ray.txt requirements-trackers.txt requirements-docs.txt
STAMP := $(VENV)/.installed-$(DEVICE)

.DEFAULT_GOAL := help
.PHONY: help setup doctor train serve loop docs test test-browser test-slow test-gpu house lint types peers bench clean install-cpu install-gpu

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## create .venv with the packages for this machine (CPU or GPU) and check it

$(STAMP): $(REQUIREMENTS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with the venv module was found;" \
	  "install it, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if ls $(VENV)/.installed-* >/dev/null 2>&1 && ! test -e $@; then \
	  echo "$(VENV) was made for another device: making it anew for $(DEVICE)"; rm -rf $(VENV); fi
	@echo "installing the $(DEVICE) packages into $(VENV); the first time takes some minutes"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(MAKE) --no-print-directory install-$(DEVICE)
	$(RUN) launch/doctor.py
	@touch $@

# The CPU build of torch ("+cpu") is on PyTorch's own index; some package indexes carry it too.
# --no-warn-conflicts: pip would remark that torchrec's fbgemm-gpu is missing; fbgemm-gpu-cpu is it.
install-cpu:
	@$(PIP) --no-deps -r requirements-cpu.txt || { \
	  echo "that did not work; trying again with $(TORCH_INDEX) (make TORCH_INDEX=... for another)"; \
	  $(PIP) --no-deps -r requirements-cpu.txt --extra-index-url $(TORCH_INDEX); }
	@$(PIP) -qq --no-warn-conflicts -c requirements-cpu.txt \
	  -r requirements-base.txt -r requirements-dev.txt -e .

install-gpu:
	@$(PIP) -qq -r requirements.txt -r requirements-dev.txt -e .

doctor: $(STAMP) ## check packages, devices and threads
	$(RUN) launch/doctor.py

train: $(STAMP) ## the whole story on the drawn world: data, encoders, two models, one table
	$(RUN) launch/demo.py workspace=$(W)
	$(RUN) launch/prepare.py data=demo workspace=$(W)
	$(TORCHRUN) launch/embed.py data=demo workspace=$(W)
	$(TORCHRUN) launch/train.py data=demo workspace=$(W) run.name=ids_only experiment=ids_only
	$(TORCHRUN) launch/train.py data=demo workspace=$(W) run.name=umair_fps experiment=umair_fps
	$(TORCHRUN) launch/evaluate.py data=demo workspace=$(W) run.name=ids_only split=test
	$(TORCHRUN) launch/evaluate.py data=demo workspace=$(W) run.name=umair_fps split=test
	$(RUN) launch/compare.py data=demo workspace=$(W) 'runs=[ids_only,umair_fps]'
	$(RUN) launch/neighbours.py data=demo workspace=$(W) exclude_same=content

serve: $(STAMP) ## recommendations of the trained world over HTTP, on 127.0.0.1:8000
	@test -e $(W)/bundles/current || $(RUN) launch/export.py data=demo workspace=$(W) run.name=umair_fps
	$(RUN) launch/serve.py bundle=$(W)/bundles/current

loop: $(STAMP) ## ten days of simulated visitors: ask, bookmark, learn at night, swap; a page of what they got
	$(RUN) launch/loop.py workspace=$(L)

docs: $(STAMP) ## the documentation as a site that opens from disk: site/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

test: $(STAMP) ## the default tests: no network, no GPU, under ten minutes on two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile

test-browser: $(STAMP) ## the tests of pages in Chromium: apt-get install chromium
	@command -v chromium >/dev/null || { echo "these tests need Chromium: apt-get install chromium" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile -m 'browser and not bench and not slow'

test-slow: $(STAMP) ## the tests marked slow
	$(RUN) -m pytest -q -m slow

test-gpu: $(STAMP) ## the tests marked gpu: one NVIDIA GPU, three minutes
	$(RUN) -m pytest -q -m gpu

house: $(STAMP) ## measures of the code beside their bounds: lengths, arguments, cycles, shapes
	$(RUN) -m tests.house

lint: $(STAMP) ## ruff and codespell
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell *.md docs/*.md .ci configs embedding launch recsys tests --ignore-words-list=nd,te,unser,leace,lable,featurs,modle,caf,whats

types: $(STAMP) ## mypy
	$(VENV)/bin/mypy

peers: $(PEERS)/.installed ## create .peers with the libraries that the benchmarks compare with

$(PEERS)/.installed: tests/benchmarks/peers/requirements.txt requirements-cpu.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS_PIP) -qq "$$(grep ^torch== requirements-cpu.txt)" || \
	  $(PEERS_PIP) -qq "$$(grep ^torch== requirements-cpu.txt)" --extra-index-url $(TORCH_INDEX)
	$(PEERS_PIP) -qq -c requirements-cpu.txt -r tests/benchmarks/peers/requirements.txt
	@touch $@

bench: $(STAMP) ## measurements (tests/benchmarks); a timing counts only on an idle machine
	$(RUN) -m pytest tests/benchmarks -m bench -s

clean: ## remove .venv and caches; workspaces stay
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find embedding launch recsys tests -name __pycache__ -type d -prune -exec rm -rf {} +
