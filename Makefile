# Needs GNU make and Python >= 3.10, nothing else: every target first makes its own environment in .venv.
PYTHON ?= python3
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
BIN := .venv/bin
WHAT := settings.ini setup.py pyproject.toml
ROOT := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
# what the notebooks and tests start by name (vitnb, jupyter) is ours
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help demo test lab parity readme docs docs-serve clean
help:
	@echo "make demo    train on a long tail, compare, and write a report    (ARGS=... goes to vitnb demo)"
	@echo "make lab     JupyterLab at the quickstart"
	@echo "make test    every check there is"
	@echo "make parity  compare with reference values in the folder VITNB_PARITY (default ../shared/parity)"
	@echo "make readme  README.md from nbs/index.ipynb"
	@echo "make docs    the site in _docs/, links checked                    (QUARTO=1: rendered by Quarto, where there is one)"
	@echo "make docs-serve   the site at http://127.0.0.1:8000               (PORT=...)"
	@echo "make clean   remove builds and caches; the environment stays (rm -rf .venv removes it)"

demo: .venv/.run
	@$(BIN)/vitnb demo $(ARGS)

# kernels inherit it; see nbs/00_core.ipynb
lab: export GOMP_SPINCOUNT ?= 1000
lab: .venv/.run
	@$(BIN)/jupyter-lab $(ROOT) --LabApp.default_url=/lab/tree/nbs/tutorials/quickstart.ipynb $(ARGS)

# One thread each: two notebooks at a time, or a neighbour on the machine, make waiting threads several times slower.
test: export OMP_NUM_THREADS := 1
# notebooks that train cut it to an epoch or two
test: export VITNB_QUICK := 1
# what is tested to the last bit is tested on the CPU, also where there is a GPU
test: export CUDA_VISIBLE_DEVICES :=
test: .venv/.dev
	@echo "== project"
	@$(BIN)/python -m pytest -q tests/test_project.py
	@echo "== notebooks"
	@$(BIN)/nbdev_test --n_workers 2 --timing
	@echo "== the rest of tests/"
	@$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/test_project.py tests

parity: .venv/.dev
	@$(BIN)/python -m vitnb.parity $(ARGS)

readme: .venv/.dev
	@$(BIN)/python tests/make_readme.py

docs: .venv/.dev
	@$(BIN)/python -W ignore docs/make_docs.py $(if $(QUARTO),--quarto)

docs-serve: docs
	@$(BIN)/python -m http.server $(or $(PORT),8000) --bind 127.0.0.1 --directory _docs

clean:
	rm -rf build dist _docs _proc vitnb.egg-info .pytest_cache .hypothesis nbs/sidebar.yml
	find data nbs tests vitnb -name __pycache__ -prune -exec rm -rf {} +

# .venv/.run: what it takes to run vitnb. .venv/.dev: that, and what it takes to test it.
.venv/.run: $(WHAT)
	$(call install,.[lab])
	@touch .venv/.run

.venv/.dev: $(WHAT)
	$(call install,.[dev])
	@touch .venv/.run .venv/.dev

# .venv/.part lies there while pip works. Found at the start, the last install was killed half-way: begin again.
define install
	@command -v "$(PYTHON)" >/dev/null || { echo "vitnb: no '$(PYTHON)' here. Install Python >= $(MIN_PYTHON), or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN_PYTHON)".split("."))))' || { echo "vitnb: Python >= $(MIN_PYTHON) is needed, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "vitnb: '$(PYTHON)' cannot make environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@[ ! -e .venv/.part ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@echo "Installing vitnb and what it needs into .venv: about two minutes, once."
	@touch .venv/.part
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-script-location --no-input -e '$(1)' || { rm -f .venv/.part; exit 1; }
	@rm -f .venv/.part
endef
