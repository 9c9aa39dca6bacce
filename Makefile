# One door for every job. `make help` lists them. Each step leaves a stamp in .venv/stamps, so a second run is quick;
# a stamp is older than the lock, the pyproject or the C++ sources it was made from exactly when its step must run again.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
STAMPS  := $(VENV)/stamps
PIP     := $(PY) -m pip --disable-pip-version-check install --quiet
WORKERS ?= 2
ARGS    ?=
BENCH   ?= conv conv-winograd conv-avx2 conv-choice gemm gemm-bf16 gemv net \
           decode prefill decode-batch decode-start decode-quality start inspect prove
NATIVE  := CMakeLists.txt $(shell find native -type f 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run setup test nightly check lint types imports docstrings words tables lock-check bench build lock clean distclean

help: ## list the jobs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# --- what people run -----------------------------------------------------------------------------

run: $(STAMPS)/demo $(STAMPS)/package $(STAMPS)/native ## set up and run the demo: two models, two outputs, their receipts
	$(BIN)/tensure demo $(ARGS)

test: setup ## set up and run every test but the slow ones
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

nightly: setup ## every test, the slow ones too, with a fresh random seed
	TENSURE_TEST_PROFILE=nightly $(PY) -m pytest -n $(WORKERS) -m "" --timeout 3600 $(ARGS)

bench: setup $(STAMPS)/bench ## measure, with every peer beside us
	@for name in $(BENCH); do $(BIN)/tensure bench $$name $(ARGS) || exit $$?; done

check: lint types imports docstrings words tables lock-check ## style, strict types, import contracts, docstrings, words, lock

# --- set-up --------------------------------------------------------------------------------------

setup: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/package $(STAMPS)/native ## everything that tests need, Debian packages included
	@$(PYTHON) tools/debian.py

build: $(STAMPS)/native ## compile the C++ part into src/tensure/kernels

$(STAMPS)/venv: requirements/pip.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tensure needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/pip.lock
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: requirements/torch.lock tools/install_torch.py $(STAMPS)/venv
	$(PY) tools/install_torch.py
	@touch $@

$(STAMPS)/deps: requirements/build.lock requirements/run.lock $(STAMPS)/torch
	$(PIP) --no-deps -r requirements/build.lock -r requirements/run.lock
	@touch $@

$(STAMPS)/demo: requirements/demo.lock $(STAMPS)/deps
	$(PIP) --no-deps -r requirements/demo.lock
	@touch $@

$(STAMPS)/test: requirements/test.lock $(STAMPS)/deps
	$(PIP) --no-deps -r requirements/test.lock
	@touch $@

$(STAMPS)/bench: requirements/bench.lock $(STAMPS)/deps
	$(PIP) --no-deps -r requirements/bench.lock
	@touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/deps
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/native: $(NATIVE) $(STAMPS)/deps
	$(BIN)/cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(PY) -DCMAKE_INSTALL_MESSAGE=NEVER --log-level=WARNING
	$(BIN)/cmake --build build/dev
	$(BIN)/cmake --install build/dev --prefix src --strip > /dev/null
	@touch $@

lock: ## freeze the versions installed now into requirements/*.lock
	$(PY) tools/lock.py --write

# --- the parts of check --------------------------------------------------------------------------

lint: $(STAMPS)/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMPS)/test $(STAMPS)/demo $(STAMPS)/package
	$(PY) -m mypy

imports: $(STAMPS)/test $(STAMPS)/package
	$(BIN)/lint-imports

tables: $(STAMPS)/package $(STAMPS)/native
	$(PY) tools/ops_table.py --check

docstrings: $(STAMPS)/test
	$(PY) tools/docstrings.py

words: $(STAMPS)/test
	$(PY) tools/words.py

lock-check: $(STAMPS)/test $(STAMPS)/demo
	$(PY) tools/lock.py --check

# --- tidying -------------------------------------------------------------------------------------

clean: ## remove what the build and the tools made
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache src/tensure/kernels/*.so
	rm -f $(STAMPS)/native
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment
	rm -rf $(VENV)
