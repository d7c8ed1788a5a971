# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TRL_EXPERIMENTAL_SILENCE := 1
export TOKENIZERS_PARALLELISM := false
# This machine only: no telemetry, nothing looked up on the Hub.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-ci check slow clean setup

demo: setup ## The whole loop on the built-in task: sft, reward model, PPO, verdict
	$(BIN)/rlhfctl run quickstart

test: setup ## The tests (those marked slow or ci left out)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-ci: setup ## What CI runs beside them
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m "ci and not slow"

slow: setup ## The long checks: kills, seeds, real text, benchmarks, the newest TRL
	$(BIN)/python -m pytest -m slow

check: setup ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## What make created; runs/ is yours and stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
