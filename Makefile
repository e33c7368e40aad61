# make demo · make test · make docs · make bench: each makes .venv and installs what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NOW := $(shell date +%Y%m%d-%H%M%S)
DEMO := runs/demo-$(NOW)
FASHION := runs/fashion-$(NOW)
# each worker has a half of the files, as far as that keeps both busy: what a file sets up is set up once
PYTEST := $(BIN)/pytest --numprocesses auto --dist worksteal
RIVALS := $(VENV)/rivals
LOWEST := $(VENV)/lowest
BENCH := PYTHONPATH=$(RIVALS) $(BIN)/python benchmarks
# the environment is keyed by what it is made from, so that a changed dependency is always installed
KEY := $(shell cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-$(KEY)

.PHONY: demo test test-all test-lowest lint audit docs bench gpu install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train SimCLR and MoCo v2 on drawn images, evaluate, compare: five to ten minutes on two cores; says how long here"
	@echo "make test    lint, types, the site of the documentation, and tests"
	@echo "make test-all  the same, and what takes minutes: all notebooks"
	@echo "make test-lowest  the heart of the tests with the lowest versions that setup.cfg allows, in an environment of its own"
	@echo "make audit   ask what is known against the installed versions of what it stands on; needs a network"
	@echo "make docs    the site of the documentation, to be opened as build/docs/index.html"
	@echo "make gpu     everything that needs a GPU, in parts of at most nine minutes; goes on where it stopped"
	@echo "make bench   every measured figure of the README and the docs, about three hours on two cores"

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("selfsup needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(INSTALLED)
	$(BIN)/python benchmarks/demo.py $(DEMO)

bench: $(INSTALLED) $(RIVALS)
	$(BENCH)/views.py --threads 2
	$(BENCH)/views.py --threads 2 --keep-memory
	$(BENCH)/views.py --threads 1 --sizes 32
	$(BENCH)/steps.py --width 16
	$(BENCH)/steps.py --width 4
	$(BENCH)/memory.py
	$(BENCH)/data.py --folder runs/photographs --delete
	$(BENCH)/neighbours.py
	$(BENCH)/neighbours.py --memory
	$(BENCH)/neighbours.py --kmeans
	$(BENCH)/evaluation.py probe
	$(BENCH)/evaluation.py extraction
	$(BENCH)/collectives.py
	$(BENCH)/scaling.py --step-ms 300 --batch 256
	$(BENCH)/speedrun.py
	$(BENCH)/methods.py time --data shapes
	$(BENCH)/methods.py table
	$(BIN)/selfsup evaluate raw_pixels --all data=fashion_mnist data.limit=10000 run_dir=$(FASHION)/raw_pixels
	$(BIN)/selfsup train experiment=fashion_mnist run_dir=$(FASHION)/simclr
	$(BIN)/selfsup evaluate $(FASHION)/simclr --all
	$(BIN)/selfsup evaluate untrained --all data=fashion_mnist data.limit=10000 backbone=convnet \
	    backbone.width=32 backbone.blocks=[2,2,2,2] run_dir=$(FASHION)/untrained
	$(BIN)/selfsup compare $(FASHION)/raw_pixels $(FASHION)/untrained $(FASHION)/simclr --out $(FASHION)/comparison

# without rivals, which would have to be fetched: run make .venv/rivals before, where there is a network
gpu: $(INSTALLED)
	$(BENCH)/gpu.py

# what the benchmarks measure beside us; in a folder of its own, as nothing else needs it
$(RIVALS): $(INSTALLED)
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --target $@ lightly==1.6.0 lightly_utils aenum solo-learn==1.0.2 \
	    stable-pretraining==0.1.8

# a warning ends it: a link that leads nowhere, a docstring that does not fit its function
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: $(INSTALLED)
	$(MAKE) --jobs 2 --output-sync lint docs
	$(PYTEST)

test-all: $(INSTALLED)
	$(MAKE) --jobs 2 --output-sync lint docs
	$(PYTEST) -m ""

# what setup.cfg allows at the least, and tests of training, evaluation, reading images and drawing; needs a network
test-lowest:
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet 'pytest>=8' 'hypothesis>=6.100' packaging
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --requirement $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pytest tests/test_run.py tests/test_config.py tests/test_checkpoint.py tests/methods/test_contract.py \
	    tests/training/test_checkpoints.py tests/eval/test_knn.py tests/eval/test_neighbours.py \
	    tests/eval/test_linear_probe.py tests/data/test_image_folder.py tests/report

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip-audit asks pypi.org about each package; where it cannot be reached, a sentence says so
audit: $(INSTALLED)
	$(BIN)/python tests/audit.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
