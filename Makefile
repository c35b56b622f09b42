# bench: how good are the frozen features of a vision model, layer by layer?
#
# Everything runs in a virtual environment of this folder, .venv; `make` builds it when it is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
.DEFAULT_GOAL := help

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bench needs Python 3.11 or later: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

.PHONY: install demo test test-all lint links benchmark in1k places205 clean help

install: $(INSTALLED)  ## set up .venv with the tested versions

demo: install  ## extract and evaluate the embedded digits: both stages, under 3 minutes
	$(BIN)/bench extract digits
	$(BIN)/bench evaluate digits
	@echo
	@echo "Features, neighbours and results lie in features/digits; see them with: $(BIN)/bench info digits"

# make in1k DATA=/data/imagenet WEIGHTS=resnet50.pth [GPUS=8] [ARGS='--k 20']; without DATA, the catalogue says where it is.
# On several nodes, the same on each: make in1k ... GPUS=8 NODES=4 MASTER=first-node:29500; then once, without NODES, the
# results.
OPTIONS = $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(ARGS)
TORCHRUN = $(BIN)/torchrun --nnodes=$(NODES) --nproc-per-node=$(or $(GPUS),1) --rdzv-backend=c10d \
	--rdzv-endpoint=$(or $(MASTER),$(error NODES needs MASTER=HOST:PORT, the first node and a free port))
RUN = $(if $(NODES),$(TORCHRUN) -m featbench extract,$(BIN)/bench run) $@ $(if $(GPUS),$(if $(NODES),,--gpus $(GPUS))) $(OPTIONS)

in1k: install  ## the ImageNet-1k benchmark: make in1k DATA=/data/imagenet WEIGHTS=resnet50.pth GPUS=8
	$(RUN)

places205: install  ## the Places205 benchmark: make places205 DATA=/data/places205 WEIGHTS=resnet50.pth
	$(RUN)

test: install  ## the tests that need neither root, GPU nor minutes
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow and not root and not gpu'

test-all: install  ## every test this machine can run; says what it skipped and why
	$(BIN)/python -m pytest

lint: install links  ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

links:  # mypy does not follow editable installs: links to the folders, where they are once installed
	@rm -rf .links
	@mkdir -p .links/featbench
	@ln -s $(addprefix ../../,$(wildcard featbench/*.py) featbench/py.typed store extract evaluate pipelines) .links/featbench

benchmark: install  ## measure the numbers the design promises, side by side
	$(BIN)/python -m benchmarks

clean:  ## remove caches (not .venv, not features/)
	rm -rf .links .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
