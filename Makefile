# make train: a first result on this machine.  make test: everything that CI runs.  make test-all: the long tests as well.
# make docs: the documentation, in docs/_build/html.  Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= quickstart
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
PARTS := lint local-tests ray-tests
SHORT := and not long

.PHONY: train test test-all docs lint local-tests ray-tests install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, {sys.executable} is {v.major}.{v.minor}; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "installing into $(VENV): a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[dev]'
	@touch $@

train: install
	$(BIN)/bgrpo train --config $(CONFIG)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests without Ray, by file on all cores (one thread each, as tests/conftest.py sets it).
local-tests: install
	$(PYTEST) -m "not ray $(SHORT)" --numprocesses $(WORKERS) --dist loadfile

# Tests that start Ray: one process, one shared session.
ray-tests: install
	$(PYTEST) -m "ray $(SHORT)"

# Side by side, because the tests on Ray mostly wait; what a part says comes when it has ended. A make that cannot keep
# their words apart (before 4.0) runs one after the other.
# --keep-going: a part that fails does not hide the result of the next, and the whole fails.
SIDE_BY_SIDE := $(if $(filter output-sync,$(.FEATURES)),--jobs --output-sync=target)

test: install
	@echo "$(PARTS): side by side, what each says comes when it has ended"
	@$(MAKE) --no-print-directory --keep-going $(SIDE_BY_SIDE) $(PARTS)

test-all: install
	@$(MAKE) --no-print-directory --keep-going $(PARTS) SHORT= PYTEST='$(PYTEST) --hypothesis-profile=new'

docs: install
	$(BIN)/python -m sphinx -W -n --keep-going -E -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
