# The public face. It only names commands: the store of the pipeline knows what is fresh, setup_environment.py whether
# .venv is. Runs on GNU Make 3.81.

RECIPE ?= auto
MODEL ?=
PYTHON ?=

RUN := .venv/bin/python -m
SHELL := /bin/sh

.PHONY: help .venv tinyswallow plan test test-bfloat16 test-quick check chat inspect compare figures
.DEFAULT_GOAL := help

help:
	@echo 'make tinyswallow [RECIPE=auto|NAME|FILE.py]  build a recipe; the deliverables are left in dist/<recipe>/'
	@echo 'make plan [RECIPE=auto|NAME|FILE.py]         what it would cost, before anything is spent (auto: the release)'
	@echo 'make test, make test-quick                   the whole suite; a minute of it that touches every package'
	@echo 'make check                                   style, types, import layers, size budget'
	@echo 'make chat [MODEL=FILE.gguf]                  talk to a model in the terminal'
	@echo 'make inspect [RECIPE=mini]                   what training reads, with the loss mask in colour'
	@echo 'make compare                                 the distillation methods against one another'
	@echo 'make figures                                 the figures of the TAID article, in dist/figures/'
	@echo 'PYTHON=PATH names the Python (3.11 to 3.13) that .venv is made with'

# A Python that cannot even read the set-up script is passed over; one named by PYTHON is the only candidate.
.venv:
	@for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1; then \
			exec "$$python" setup_environment.py $(if $(PYTHON),--insist); \
		fi; \
	done; \
	echo 'error: wanted Python 3.11 to 3.13; got $(if $(PYTHON),$(PYTHON) which does not run or is older,no python3 on PATH); next: install one, or name one with make PYTHON=PATH' >&2; \
	exit 2

tinyswallow: .venv
	@$(RUN) recipes '$(RECIPE)'

plan: .venv
	@$(RUN) recipes '$(RECIPE)' --plan

test: .venv
	@OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# Emulated where the processor has no units for it, and slow there.
test-bfloat16: .venv
	@TINYSWALLOW_PRECISION=bfloat16 OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		$(addprefix tests/test_,common_outcome.py distill_on_policy.py distill_train.py instruct_train.py)

test-quick: .venv
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m quick

check: .venv
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright
	.venv/bin/lint-imports
	$(RUN) pytest -q tests/test_house.py

chat: .venv
	@$(RUN) eval.chat $(if $(MODEL),'$(MODEL)')

inspect: .venv
	@$(RUN) recipes.inspect '$(patsubst auto,mini,$(RECIPE))'

compare: .venv
	@$(RUN) studies.compare

figures: .venv
	@$(RUN) studies.figures
