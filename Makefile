# make demo    a virtual environment, the package, one image from a sentence
# make test    everything that CI runs
# make help    the rest
#
# PYTHON  the interpreter that the environment is made with
# VENV    where it goes
# TORCH   what to install before the package. With TORCH= (empty) nothing is, and the environment sees the interpreter's
#         own packages: use it on a machine with a GPU, to keep the PyTorch build that is already there.
# MULOSD_CUDA_ARCHS, MULOSD_SKIP_NATIVE  for which GPUs the CUDA kernels are built; by default for those of this machine
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PROMPT ?= a cat left of a guitar on a yellow background
OUT ?= out

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CXX_SOURCES = $(shell find csrc \( -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' \) 2>/dev/null)
# What the native extension is built from; a change rebuilds it. Python files need no reinstallation.
NATIVE := $(wildcard CMakeLists.txt csrc/*.cu csrc/*.cpp csrc/include/mulosd/*.cuh csrc/include/mulosd/*.h csrc/host/*)
# What became of it and why, in one line that setup.py leaves and pip does not show.
BUILT := python/mulosd/native.txt

# A process a core, at most four, of one thread each; the tests of a file stay together, for they share what is made once.
pytest quick: export OMP_NUM_THREADS = 1
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.NOTPARALLEL:
.PHONY: help demo test pytest quick lint types format bench clean

help:
	@echo "make demo     install into $(VENV), write $(OUT)/demo.png, print its statistics"
	@echo "make test     lint, types and every test, as CI runs them"
	@echo "make quick    the tests that are not marked slow"
	@echo "make lint     ruff, clang-format, mypy"
	@echo "make format   let ruff and clang-format rewrite the files"
	@echo "make bench    the figures of the bundled family (long)"
	@echo "make clean    remove build products; $(VENV) stays"

$(VENV)/.torch:
	$(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) $(VENV)
	$(if $(TORCH),$(PIP) install -q '$(TORCH)')
	@touch $@

# A plain install would let pip choose the newest PyTorch; the one above is there first and satisfies the requirement.
INPUTS := $(VENV)/.torch pyproject.toml setup.py python/mulosd/_version.py $(NATIVE)
$(VENV)/.package: $(INPUTS)
	$(PIP) install -q -e .
	@cat $(BUILT)
	@touch $@

# Holds the package as well: it is built once, whichever of the two comes first on a fresh checkout.
$(VENV)/.develop: $(INPUTS)
	$(PIP) install -q -e '.[train,bench,test,dev]'
	@cat $(BUILT)
	@touch $(VENV)/.package $@

demo: $(VENV)/.package
	@mkdir -p $(OUT)
	$(BIN)/mulosd generate "$(PROMPT)" --decoder mulo --seed 7 --output $(OUT)/demo.png --stats $(OUT)/demo.json

test: lint pytest

pytest: $(VENV)/.develop
	$(BIN)/python -m pytest $(PARALLEL)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) tests/kernels

quick: $(VENV)/.develop
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: $(VENV)/.develop types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES))

# The import name of a file follows from pyproject's package_dir, which mypy does not read: it gets a tree of links that
# has the shape of the installed package.
TREE := build/types/mulosd
types: $(VENV)/.develop
	@rm -rf $(TREE) && mkdir -p $(TREE)
	@ln -s $(CURDIR)/python/mulosd/* $(TREE)/ && ln -s $(CURDIR)/engine $(CURDIR)/kernels $(TREE)/
	MYPYPATH=build/types $(BIN)/mypy -p mulosd

format: $(VENV)/.develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_SOURCES),$(BIN)/clang-format -i $(CXX_SOURCES))

bench: $(VENV)/.develop
	@mkdir -p $(OUT)
	$(BIN)/mulosd bench decode --family emoji --prompts 64 --json $(OUT)/bench.json --plot $(OUT)/bench.png --runs $(OUT)/bench.jsonl

clean:
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
