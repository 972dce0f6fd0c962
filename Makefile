# `make demo` or `make test` on a fresh machine with Python >= 3.11 does all the set-up; a second run reinstalls nothing.
#
#   make demo                      set up .venv, render people, train on them, test on others
#   make test                      set up .venv, run the tests
#   make test-all                  and the slow ones
#   make lint                      ruff, mypy, import rules, the Dockerfile
#   make docs                      the pages as a site, in build/site
#   make notebooks                 run the notebooks anew, outputs and all
#   make install-smpl              add smplx, which reads official SMPL files; its licence: non-commercial research
#   make install TORCH_INDEX=URL   choose a build of torch: the --index-url that pytorch.org's selector prints
#   make PYTHON=python3.12 test    choose the interpreter
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Another index is another installation: its stamp is another one.
STAMP := $(VENV)/.installed$(if $(TORCH_INDEX),-$(subst :,_,$(subst /,_,$(TORCH_INDEX))))

.PHONY: help install install-smpl demo test test-all lint format docs notebooks clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# The stamp depends on what decides the packages, and is written last: an interrupted install runs again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; choose another with make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--force-reinstall --index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Asked for by name, because of its licence; its tests run where it is, and say that they are skipped where it is not.
install-smpl: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[smpl]'

TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

demo: $(STAMP)
	$(BIN)/clip3dreid demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# One thread each: two test processes with two threads each on two cores wait for each other.
# Neighbouring tests stay together, and so does what a file shares; whoever has none left takes half of the other's.
WORKERS ?= 2
test test-all: export OMP_NUM_THREADS ?= 1

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)
	$(BIN)/python tools/run_notebooks.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
