# Two commands do all the set-up: `make demo` (use) and `make test` (develop). Everything lives in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# One OpenMP thread for each test process: two processes share two cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test test-slow check format bench docs clean

help:
	@echo "make demo       the main job on the built-in world: train, measure, index, search -> demo/report.html"
	@echo "make test       the fast tests        make test-slow  the long ones"
	@echo "make check      ruff, formatting, mypy, generated docs"
	@echo "make bench      speed beside peers -> results/benchmarks/"
	@echo "make docs       rewrite the generated parts of docs/ and README.md"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/avcl demo --out demo --force

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow --timeout 1800

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/media.py
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/world.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/ranking.py
	$(BIN)/python benchmarks/correlation.py
	$(BIN)/python benchmarks/gradient_cache.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/systems.py

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py

clean:
	rm -rf demo build dist src/*.egg-info
