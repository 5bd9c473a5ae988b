# `make run` and `make test` set everything up by themselves; `make help` lists the rest.
#
#   PYTHON=python3.12   the interpreter that .venv is made from (Python 3.10 to 3.14)
#   ARGS="--rounds 5"   passed on to the command that the target runs
#   FEDCLIP_PURE_PYTHON=1, FEDCLIP_CUDA=0|1: see setup.py

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
# The kernels are built while pip installs the rest; ninja counts its own jobs.
MAKEFLAGS += -j2
unexport MAKEFLAGS
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install \
	--progress-bar off
# The interpreter that is to be used, also before .venv is there.
ANY_PYTHON = $(firstword $(wildcard $(BIN)/python) $(PYTHON))
KERNELS := fedclip_plugin/_C$(shell $(ANY_PYTHON) -c \
	'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
# torch first: the package then compiles against it, and it is fetched only once.
FIRST := $(shell sed -nE 's/^ *"(torch(vision)?>=[0-9.]+|setuptools>=[0-9]+|ninja>=[0-9.]+|pybind11>=[0-9.]+)",?$$/"\1"/p' pyproject.toml)
# Of pip's output only what says that it is getting on; errors are on stderr.
PROGRESS := awk '/^ *Downloading/ {split($$2, name, "-"); print "   ", name[1], name[2], $$3, $$4} \
	/^(Building|Installing|Successfully built)/ {print substr($$0, 1, 72)} {fflush()}'

# pip's warnings are about its own settings; what it cannot do begins with ERROR.
ERRORS := grep -v '^WARNING:' >&2 || true
# PyTorch for Linux on x86-64 brings the libraries of CUDA.
SIZE := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),2 to 3 GB to download \
	(PyTorch): 5 to 15 minutes,0.5 GB to download (PyTorch): minutes)

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: run
run: install  ## run FedCLIP on the embedded data set (ARGS="..." is passed on)
	@echo "==> fedclip run: half a minute"
	@$(BIN)/fedclip run $(ARGS)
	@echo "(fedclip is $(BIN)/fedclip; after  source $(BIN)/activate  the name will do)"

.PHONY: test
test: install  ## run everything that this machine can (ARGS="-s lint" picks)
	$(BIN)/nox $(ARGS)

.PHONY: lint
lint: install  ## ruff, mypy and clang-format
	$(BIN)/nox -s lint

.PHONY: format
format: install  ## put Python and C++ sources into the project's format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | \
		xargs $(BIN)/clang-format -i

.PHONY: docs
docs: install  ## run the tutorials and build the site in .nox/docs/site
	$(BIN)/nox -s docs

.PHONY: wheel
wheel: install  ## build the wheels and the sdist in dist/, and try the wheel
	$(BIN)/nox -s wheel

.PHONY: bench
bench: install  ## time the kernels against PyTorch
	$(BIN)/python -m benchmarks ops --write $(ARGS)

.PHONY: gpu-check
gpu-check:  ## build, test and time the CUDA kernels on this machine's GPU
	$(ANY_PYTHON) -m benchmarks gpu-check --write $(ARGS)

.PHONY: install
install: $(VENV)/.installed  ## make .venv, install the package in it, build the kernels

ifeq ($(filter-out 0,$(FEDCLIP_PURE_PYTHON)),)
install: $(KERNELS)
endif

$(BIN)/python:
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) build_backend/make_venv.py $(VENV)

$(VENV)/.torch: pyproject.toml | $(BIN)/python
	@echo "==> installing fedclip-plugin into $(VENV), once: $(SIZE)"
	@$(PIP_INSTALL) $(FIRST) 2> >($(ERRORS)) | $(PROGRESS)
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py build_backend/backend.py | $(VENV)/.torch
	@FEDCLIP_PURE_PYTHON=1 $(PIP_INSTALL) --no-build-isolation -e '.[dev]' \
		2> >($(ERRORS)) | $(PROGRESS)  # the kernels come below
	@touch $@

$(KERNELS): setup.py $(SOURCES) | $(VENV)/.torch
	@echo "==> building the kernels: 2 to 6 minutes, once"
	@$(BIN)/python setup.py --quiet build_ext --inplace 2>&1 | \
		sed -E 's|^(\[[0-9]+/[0-9]+\]) .* -c ([^ ]+) -o .*|    \1 \2|'
	@touch $@

.PHONY: clean
clean:  ## remove what was built, and the caches; keeps .venv
	rm -rf build dist .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f fedclip_plugin/_C*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## the same, and .venv
	rm -rf $(VENV) *.egg-info
