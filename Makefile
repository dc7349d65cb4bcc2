# Each target sets up .venv by itself, once. PYTHON=... picks another Python 3.11 or newer.
PYTHON ?= python3.11
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share what they start, so they run in one process; files start in the order in which they are given.
# A process that dies ends the run with its test's name: after starting another, xdist may wait for ever.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
	--max-worker-restart 0
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off

.PHONY: demo test tests cluster lint format benchmark clean

demo: $(READY)  ## the whole pipeline on the default corpora
	$(BIN)/python -m pipelines.demo

test: $(DEV_READY)  ## lint and every test, at once (GPU and network tests are off by default)
	@$(MAKE) --no-print-directory -j2 lint tests

tests: $(DEV_READY)
	$(PYTEST) tests

cluster: $(DEV_READY)  ## every step as a job on a cluster of this machine
	$(BIN)/python cluster/rehearsal.py

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)  ## the figures of docs/measured.md
	$(BIN)/python -m benchmarks.run

clean:  ## remove the environment and everything the demo wrote
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "creating $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(READY): requirements.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV) (about 7 GB, once; a few minutes)"
	$(PIP) -r requirements.txt
	@touch $@

$(DEV_READY): requirements-dev.txt requirements.txt | $(VENV)/bin/python
	@echo "installing requirements-dev.txt into $(VENV) (about 7 GB, once; a few minutes)"
	$(PIP) -r requirements-dev.txt
	@touch $(READY) $@
