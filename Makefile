.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
DEMO_ARGS ?=
TEST_ARGS ?=
FAUST_TESTS ?=
SEED ?= $(shell date +%s)

.PHONY: help setup engines demo test test-fast bench soak-sources chaos faust-tests check docs site format lock clean lambda

help: ## show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done ## make .venv with the headwater command in it (quick when nothing changed)

# Compiled now, once: a process that starts then takes a third of the time, also where Python may write no bytecode.
$(VENV)/.done: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit("Headwater needs Python 3.11 to 3.13; this is %s. Try: make setup PYTHON=python3.12" % sys.version.split()[0] if not (3, 11) <= sys.version_info < (3, 14) else 0)'
	@if command -v uv >/dev/null 2>&1; then \
	  uv sync --frozen --quiet --compile-bytecode --python $(PYTHON) && touch $@; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet uv==$(UV_VERSION) && $(BIN)/uv sync --frozen --quiet --inexact --compile-bytecode && touch $@; \
	fi
	@echo "ready: . $(BIN)/activate, then headwater --help"

engines: setup $(VENV)/.engines

$(VENV)/.engines: pyproject.toml uv.lock
	@if command -v uv >/dev/null 2>&1; then uv sync --frozen --quiet --inexact --group engines; \
	else $(BIN)/uv sync --frozen --quiet --inexact --group engines; fi && touch $@

demo: setup ## carry changes from DynamoDB to Parquet on this machine, and prove that none is lost (DEMO_ARGS="--changes 20000")
	@$(BIN)/headwater demo $(DEMO_ARGS)

test: engines ## run all tests (TEST_ARGS="-k name" for some)
	@$(BIN)/pytest -n 2 --dist worksteal tests/unit tests/property tests/conformance $(TEST_ARGS) || test $$? -eq 5
	@$(BIN)/pytest -n 3 --dist loadfile -m "not alone" tests/integration $(TEST_ARGS) || test $$? -eq 5
	@$(BIN)/pytest -m alone tests/integration $(TEST_ARGS) || test $$? -eq 5

test-fast: setup ## the tests of code alone, for daily work: no broker, under two minutes
	@$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not kafka" tests/unit tests/property tests/conformance $(TEST_ARGS) || test $$? -eq 5

bench: setup ## measure deduplication, flows and the lake against peers, ingest, mirror and replay against plain loops (an hour)
	@$(BIN)/headwater bench dedup --peers
	@$(BIN)/headwater bench ingest
	@$(BIN)/headwater bench flows
	@$(BIN)/headwater bench lake
	@$(BIN)/headwater bench mirror
	@$(BIN)/headwater bench replay

chaos: setup ## hurt workers and broker 100 times under load, and prove that nothing is lost (20 minutes; SEED=1 for the same again)
	@$(BIN)/headwater chaos --faults 100 --seed $(SEED) --page docs/reliability.md --json

soak-sources: setup ## ten minutes each of simulated DynamoDB and Kinesis streams with all faults, workers killed on the way; writes docs/reliability.md
	@$(BIN)/headwater soak sources --seconds 600 --page docs/reliability.md --json
	@$(BIN)/headwater soak sources --kinesis --seconds 600 --page docs/reliability.md --json

faust-tests: setup ## run the tests that Faust ships on this transport, with Apache Kafka (15 minutes)
	@PYTHONPATH=tests $(BIN)/python -m upstream.run $(FAUST_TESTS)

check: engines ## format, lint, types, import rules, dependencies, spelling, words
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/deptry .
	@$(BIN)/codespell
	@$(BIN)/python docs/words.py

lambda: setup ## pack the Lambda into dist/headwater-lambda.zip, for Python 3.12 on x86-64
	@rm -rf dist/lambda dist/headwater-lambda.zip && mkdir -p dist/lambda
	@$(BIN)/uv export --quiet --frozen --only-group lambda --output-file dist/lambda.txt
	@$(BIN)/uv pip install --quiet --target dist/lambda --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
	  --only-binary :all: --requirements dist/lambda.txt
	@cp -R models pipeline dist/lambda && rm -rf dist/lambda/bin
	@find dist/lambda -name __pycache__ -prune -exec rm -r {} +
	@cd dist/lambda && ../../$(BIN)/python -m zipfile -c ../headwater-lambda.zip *
	@ls -l dist/headwater-lambda.zip

docs: setup ## write the pages that are made from the code, the map and the pictures
	@$(BIN)/python docs/reference/generate.py
	@$(BIN)/python docs/map.py
	@$(BIN)/python docs/images/flow.py
	@$(BIN)/python docs/images/transport.py

site: setup ## build the docs site into site/, to be opened without a server; search works offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

format: setup ## format the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: setup ## resolve the dependencies again
	@$(BIN)/uv lock

clean: ## remove what setup and the local stack left in this directory
	rm -rf $(VENV) .headwater site .mypy_cache .ruff_cache .pytest_cache .hypothesis
