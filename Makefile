# Every target needs nothing but python3 (3.11 or later) and make: it makes .venv first if that is missing or out of date.

PYTHON ?= python3
PORT ?= 8000
JOBS ?= 4
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two pips must not write into one .venv
.DELETE_ON_ERROR:
.PHONY: help demo test contract handover lint docs bench coverage dev clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1 - /p' Makefile | sort

demo: .venv/.stamp-demo  ## serve examples/starlette on uvicorn until Ctrl-C (PORT=8000)
	@cd examples/starlette && exec "$(CURDIR)/$(BIN)/python" "$(CURDIR)/.ci/foreground.py" \
		"$(CURDIR)/$(BIN)/python" -m uvicorn app:app --port $(PORT)

test: .venv/.stamp-test  ## run the tests (JOBS=4, ARGS="-k name")
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

contract: .venv/.stamp-test  ## run every server through everything, and write docs/servers/contract.md (JOBS=4)
	rm -rf build/contract
	ENGINE_BRIDGE_CONTRACT=build/contract $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/servers/test_contract.py $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m servers.contract.page build/contract

lint: .venv/.stamp-lint  ## check format, style, types, layers and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: .venv/.stamp-docs  ## build the documentation in build/docs
	$(BIN)/sphinx-build -n -W --keep-going -q docs build/docs

bench: .venv/.stamp-bench  ## measure, side by side with CherryPy and MagicBus
	$(BIN)/python -m benchmarks $(ARGS)

coverage: .venv/.stamp-test  ## run the tests and report which branches they miss
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

handover: .venv/.stamp-test  ## hand a socket over 12 times under load, with each server
	HAND_OVERS=12 REQUESTS=20000 $(BIN)/python -m pytest -rP tests/servers/test_serve.py -k gives_way $(ARGS)

dev: .venv/.stamp-dev  ## make .venv with everything a developer needs

clean:  ## remove .venv and all that the tools left
	rm -rf .venv .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp-demo: PACKAGES = -e '.[uvicorn]' websockets
.venv/.stamp-test: PACKAGES = -e . --group tests
.venv/.stamp-lint: PACKAGES = -e . --group tests --group typing --group lint  # mypy reads what the tests import
.venv/.stamp-docs: PACKAGES = -e . --group docs
.venv/.stamp-bench: PACKAGES = -e . --group bench
.venv/.stamp-dev: PACKAGES = -e . --group dev

.venv/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "engine_bridge needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -qq 'pip>=25.1'  # the first that knows --group
	@touch $@

.venv/.stamp-%: .venv/.stamp-venv pyproject.toml constraints.txt
	@echo "installing what make $* needs into .venv"
	@$(PIP) install -qq -c constraints.txt $(PACKAGES)
	@touch $@
