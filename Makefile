# Everything starts here: `make up`, `make test`. Needs Python 3.11 or later and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime comes in two builds that exclude each other.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
POLICY ?=
ENVOY_PORT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help venv dev up test lint native bench proto lock image-root clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(VENV)/.installed ## create .venv with the product installed, nothing started

dev: $(VENV)/.dev

up: venv ## run Envoy, the router and example models; prints three curl lines (POLICY=, ENVOY_PORT=)
	@exec $(BIN)/pointsman up $(POLICY) --envoy-port $(ENVOY_PORT)

test: dev ## run every test (PYTEST="-k name" narrows)
	$(BIN)/python -m pytest $(PYTEST)

lint: dev ## ruff, mypy --strict, the import contract, the generated code
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

native: venv ## compile the hot path with mypyc into build/native (needs a C compiler): the same source, less CPU
	rm -rf build/native build/wheel
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 PYTHON=$(BIN)/python ./wheel.sh build/wheel
	$(PIP) install --no-deps --target build/native build/wheel/pointsman-*.whl
	@echo "to use it here: PYTHONPATH=build/native $(BIN)/python -P -m cli.main serve …"

bench: dev native ## run the benchmarks; tables, JSON and plots go to bench/out
	$(BIN)/python -m bench

proto: dev ## regenerate the protobuf code
	$(BIN)/python proto/generate.py

lock: dev ## pin what the images install, with hashes, in requirements/
	$(PIP) install uv
	for extra in cpu cuda; do $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
		--extra $$extra --extra redis --extra otel --no-annotate --custom-compile-command "make lock" \
		--quiet --output-file requirements/$$extra.txt; done
	echo 'hatchling hatch-mypyc mypy[mypyc]' | tr ' ' '\n' | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements/build.txt

image-root: ## the image's files in build/image-root, without a container engine
	PYTHON=$(PYTHON) k8s/image-root.sh build/image-root

clean: ## remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage htmlcov bench/out build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; say which: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	@echo "installing into $(VENV) ($(DEVICE))"
	@$(PIP) install --no-compile -e '.[$(DEVICE),up]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install --no-compile -e '.[$(DEVICE),up,dev]'
	@touch $@
