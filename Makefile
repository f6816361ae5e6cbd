# Two commands for a newcomer: `make demo`, then `make test`. Everything they need they install into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# The tests start hundreds of processes, each of which would compile all that it imports where this is set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup qemu for-soak demo test docs soak check bench bench-vm matrix clean

setup: $(VENV)/.dev-installed

# The virtual environment; python3-venv is a package of its own on Debian.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hvsock needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq python3-venv; \
		else echo "python3-venv is missing: run  apt-get install -y make python3-venv  and try again" >&2; exit 1; fi; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime-installed: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

# Dependency groups need pip 25.1 or newer.
$(VENV)/.dev-installed: pyproject.toml $(VENV)/.runtime-installed
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --group dev
	@touch $@

# QEMU for real VMs, installed when root and apt are there; else one line says what to run.
qemu:
	@tools/install-qemu

# What single tests of the soak are with, Wine and Podman; in the same way.
for-soak:
	@tools/install-for-soak

demo: $(VENV)/.runtime-installed qemu
	$(BIN)/hvsock demo

# Processes for two processors, which idle while one of them waits; they begin with the tests that have VMs.
SPREAD := -n 3 --no-loadscope-reorder --durations=15

test: setup qemu
	$(BIN)/python -m pytest $(SPREAD) --ignore=tests/test_core_coverage.py

# The examples of every page of the documentation, also in VMs, one for each processor; `make test` has those of the
# first pages.
docs: setup qemu
	HVSOCK_SOAK=1 $(BIN)/python -m pytest -n 2 tests/docs

# The fuzzer that is guided by coverage; without it, the others still run.
soak: setup qemu for-soak
	-$(PIP) install --group fuzz
	HVSOCK_SOAK=1 $(BIN)/python -m pytest $(SPREAD) --timeout=7200 -o faulthandler_timeout=7100

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform linux
	$(BIN)/mypy --platform win32
	$(BIN)/python -m pytest -q tests/test_core_coverage.py

bench: setup
	$(BIN)/python -m benchmarks

bench-vm: setup qemu
	$(BIN)/python -m benchmarks.vm

# What each transport does, in docs/matrix.md; some ten minutes.
matrix: setup qemu
	$(BIN)/python -m tests.matrix

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
