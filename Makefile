PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin

.PHONY: demo test lint

demo: $(VENV)/demo-ready
	$(RUN)/python examples/quickstart.py

test: lint
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n 2 --dist loadfile

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-ready: $(VENV)/bin/python setup.py constraints.txt
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/test-ready: $(VENV)/bin/python setup.py constraints.txt
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/test-ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
