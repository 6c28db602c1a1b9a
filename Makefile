# `make demo` and `make test` set up everything they need; `make setup` alone makes the environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test test-all lint docs clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	# Only weights are read out of these two; what they pin would replace PyTorch and NumPy.
	$(PIP) install --quiet --no-deps cgn-pytorch mediapipe==0.10.21
	touch $@

demo: setup
	$(BIN)/python -m afield demo

test: setup lint docs
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2

test-all: setup lint docs
	$(BIN)/python -m pytest --numprocesses 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

clean:
	rm -rf .venv build runs
