# Each target sets up what it needs: a virtual environment, the package, the pinned model and data.
PYTHON ?= python3
BIN := .venv/bin
PIP_FLAGS := --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help study reproduce test quick lint format docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

study: .venv/ready  ## fetch model and data, train 18 runs, write results/report/report.html
	@$(BIN)/python experiments/train.py experiment=first_study || [ $$? -eq 1 ]  # 1: some runs failed
	@$(BIN)/python analysis/report.py sweep=first_study

reproduce: .venv/ready  ## remake the flagship study; says beforehand how long that will take
	@$(BIN)/python experiments/reproduce.py

test: lint  ## lint, types and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: .venv/ready  ## the everyday tests, without the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready  ## put the code into the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready  ## write the pages that derive from conf/ and the table of measures
	$(BIN)/python docs/generate.py

clean:  ## remove the environment and what tools left; results/ stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "setting up .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@
