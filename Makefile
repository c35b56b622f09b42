# bench: how good are the frozen features of a vision model, layer by layer?
#
# Everything runs in a virtual environment of this folder, .venv; `make` creates it when it is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
.DEFAULT_GOAL := help

# make install CPU=1: builds without CUDA, which are several GB smaller. An environment remembers that it was asked for.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_MARK := $(VENV)/.cpu
CPU := $(or $(CPU),$(if $(wildcard $(CPU_MARK)),1))
ifneq ($(and $(CPU),$(wildcard $(INSTALLED)),$(if $(wildcard $(CPU_MARK)),,other)),)
$(error $(VENV) was installed without CPU=1. Remove it first: rm -r $(VENV))
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CPU_TORCH := $(shell sed -n 's/^\(torch\|torchvision\)==\([0-9.]*\)$$/\1==\2+cpu/p' constraints.txt)

# pip can't replace a dependency: this prints those of pyproject.toml, faiss-cpu instead of faiss-gpu, with "dev" also
# those of all extras.
define CPU_REQUIREMENTS
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"].values() if "dev" in sys.argv else ()
wanted = [line for lines in (project["dependencies"], *extras) for line in lines if not line.startswith("featbench")]
print(*(line.split(";")[0].replace("faiss-gpu", "faiss-cpu") for line in wanted), sep="\n")
endef
export CPU_REQUIREMENTS
install_cpu = $(BIN)/python -c "$$CPU_REQUIREMENTS" $(1) > $(VENV)/requirements.txt && \
	$(PIP) -r $(VENV)/requirements.txt && $(PIP) --no-deps --editable .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bench needs Python 3.11 or later: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef CPU
	@touch $(CPU_MARK)
	$(PIP) --retries 1 --extra-index-url $(TORCH_INDEX) $(CPU_TORCH) || echo "There are no builds of PyTorch without CUDA \
	at $(TORCH_INDEX), or it can't be reached: installing PyPI's, which on Linux take some 5 GB more. A mirror can be \
	given: make install CPU=1 TORCH_INDEX=URL" >&2
	$(call install_cpu)
else
	$(PIP) --editable .
endif
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
ifdef CPU
	$(call install_cpu,dev)
else
	$(PIP) --editable '.[dev]'
endif
	@touch $@

.PHONY: install install-dev demo test test-all lint links benchmark samples in1k places205 clean help

install: $(INSTALLED)  ## set up .venv with the tested versions; CPU=1 for builds without CUDA

install-dev: $(INSTALLED_DEV)  ## the same, and what the tests, the linters and the benchmarks need

demo: install  ## extract and evaluate the embedded digits: both stages, under 3 minutes
	$(BIN)/bench extract digits
	$(BIN)/bench evaluate digits --k 5,20
	@echo
	@echo "Features, neighbours and results are in features/digits; see them with: $(BIN)/bench info digits"

# make in1k DATA=/data/imagenet WEIGHTS=resnet50.pth [GPUS=8] [ARGS='--k 20']; without DATA, the folder is the catalogue's.
# On several nodes, run the same on each: make in1k ... GPUS=8 NODES=4 MASTER=first-node:29500; then, once, without
# NODES for the results.
OPTIONS = $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(ARGS)
TORCHRUN = $(BIN)/torchrun --nnodes=$(NODES) --nproc-per-node=$(or $(GPUS),1) --rdzv-backend=c10d \
	--rdzv-endpoint=$(or $(MASTER),$(error NODES needs MASTER=HOST:PORT, the first node and a free port))
RUN = $(if $(NODES),$(TORCHRUN) -m featbench extract,$(BIN)/bench run) $@ $(if $(GPUS),$(if $(NODES),,--gpus $(GPUS))) $(OPTIONS)

in1k: install  ## the ImageNet-1k benchmark: make in1k DATA=/data/imagenet WEIGHTS=resnet50.pth GPUS=8
	$(RUN)

places205: install  ## the Places205 benchmark: make places205 DATA=/data/places205 WEIGHTS=resnet50.pth
	$(RUN)

test: install-dev  ## the tests that need neither root, GPU nor minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not root and not gpu and not browser'

test-all: install-dev  ## every test this machine can run; says what it skipped and why
	$(BIN)/python -m pytest

lint: install-dev links  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests

links:  # mypy does not follow editable installs: links to the folders, at the paths they have once installed
	@rm -rf .links
	@mkdir -p .links/featbench
	@ln -s $(addprefix ../../,$(wildcard featbench/*.py) featbench/py.typed store extract evaluate pipelines) .links/featbench

benchmark: install-dev  ## measure the numbers the design promises, and write docs/benchmarks; SHORT=1 takes two minutes
	$(BIN)/python -m benchmarks $(if $(SHORT),--short)

samples: install  ## rewrite the sample outputs in README.md
	$(BIN)/python docs/samples.py

clean:  ## remove caches (not .venv, not features/)
	rm -rf .links .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
