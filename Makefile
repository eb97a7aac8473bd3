# `make help` lists what there is. Every target makes the environment it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MODEL ?= demo
BIN := .venv/bin

# Compiled modules are kept, whatever the environment says: without them each process compiles the libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env weights pack serve check types unit test test-all bench cluster lock sbom release audit scoreboard docs words

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {sub(/:.*/, "", $$1); printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## make .venv from the lock file
	@scripts/bootstrap

DEMO := weights/imagenet/efficientnet-lite0.pth
TRAINED := $(foreach name,digits textures,weights/$(name)/$(name).pth)

weights: $(DEMO) $(TRAINED) ## make the demo models; training takes some minutes

$(DEMO): weights/imagenet/make.py | env
	@$(BIN)/python $<

weights/digits/digits.pth: weights/digits/train.py
weights/textures/textures.pth: weights/textures/train.py
$(TRAINED): | env
	@$(BIN)/python $<

pack: $(DEMO) weights/digits/digits.pth | env ## pack demo models: weights/*/packed is served without torch
	@for demo in imagenet digits; do $(BIN)/pthserve pack weights/$$demo -o weights/$$demo/packed; done

# What MODEL needs to be made first: a demo's weights, and nothing for a model of your own.
serve: $(if $(filter demo,$(MODEL)),$(DEMO),$(filter $(MODEL:/=)/%,$(DEMO) $(TRAINED))) | env ## serve MODEL (default: the ImageNet demo) on http://127.0.0.1:8000
	@$(BIN)/pthserve serve $(MODEL)

check: env ## the fast loop: format, lint, types, unit tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/shellcheck $$(git ls-files | xargs grep -lE '^\#!.*(bash|sh)$$')
	@$(MAKE) -s -j 2 types unit

types: env ## check the types
	@nice $(BIN)/mypy

unit: env ## run the quick tests
	@$(BIN)/pytest -q -n 2 -m "not (slow or alone or browser or cluster)" tests

test: env ## what every change must pass: half an hour on two cores once caches are warm
	@scripts/test

test-all: env ## every test there is: the long sweeps, soaks and cluster tests too
	@scripts/test --all

bench: env ## measure this service beside its peers, as ratios
	@$(BIN)/python -m benchmarks

cluster: env ## start the local Kubernetes of k8s/local
	@k8s/local/cluster up

lock: env ## renew requirements.lock
	@scripts/lock

sbom: env ## write bills of materials (CycloneDX) into build/
	@scripts/sbom

release: env ## make the release of this commit in dist/; RELEASE has options: docs/releasing.md
	@scripts/release $(RELEASE)

audit: env ## look for known vulnerabilities in what the lock files pin
	@scripts/audit

scoreboard: env ## write docs/models.md: what becomes of the weights of every architecture (10 minutes)
	@$(BIN)/python scripts/scoreboard.py

docs: env ## write the generated pages
	@$(BIN)/python scripts/settings_table.py
	@$(BIN)/python scripts/architecture_page.py
	@command -v helm >/dev/null || PATH="$$PATH:$$(k8s/local/programs helm)"; $(BIN)/python charts/generate.py

words: env ## write all that a user may read into build/words.txt
	@$(BIN)/python scripts/words.py
