# One command each. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= cpu
SEEDS ?= 0
PORT ?= 8888
# A CPU build of PyTorch, smaller than the default one: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP = $(BIN)/python -m pip install --disable-pip-version-check -q
# glibc otherwise hands every large tensor back to the kernel (docs: spin_utils/files/runtime.py).
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=1000000000
LAYOUT := JUPYTERLAB_WORKSPACES_DIR="$(CURDIR)/.lab"

.DEFAULT_GOAL := help
.PHONY: help setup setup-here check reproduce figures report summary book crate plan test lint lab bench lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Settings: PROFILE=$(PROFILE) (smoke, laptop, cpu, dialogue, gpu, gpu-7b, paper, paper-released or a .yaml file)  SEEDS=$(SEEDS) (such as 0,1,2)"
	@echo "            PORT=$(PORT) of lab"

setup: $(READY)  ## make the virtual environment from the locks

$(READY): requirements.lock requirements-data.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	@$(MAKE) --no-print-directory setup-here

setup-here:
	$(PIP) --no-deps --require-hashes -r requirements-data.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@echo "Fetching the tasks of Big-Bench (358 MB, once)"
	-$(BIN)/python -m spin_utils.data.big_bench
	@touch $(READY)

reproduce: $(READY)  ## run the paper at PROFILE, from the data to tables and figures
	$(BIN)/spin-repro reproduce --profile '$(PROFILE)' --seeds $(SEEDS)

check: $(READY)  ## say whether PROFILE fits this machine, and how long it will take
	$(BIN)/spin-repro check --profile '$(PROFILE)'

figures: $(READY)  ## redraw tables and figures from the results, without a model
	$(BIN)/spin-repro figures --profile '$(PROFILE)'

report: $(READY)  ## one HTML page of a run: verdicts, figures, tables, provenance
	$(BIN)/spin-repro report --profile '$(PROFILE)'

book: $(READY)  ## one static site of notebooks and pages, with a search: site/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . site

summary: $(READY)  ## a run on two pages of A4 as PDF
	$(BIN)/spin-repro summary --profile '$(PROFILE)'

crate: $(READY)  ## the whole of a run with its provenance as one RO-Crate, for an archive
	$(BIN)/spin-repro crate --profile '$(PROFILE)'

plan: $(READY)  ## print the steps of a reproduction and what is already there
	$(BIN)/spin-repro plan --profile '$(PROFILE)' --seeds $(SEEDS)

test: $(READY)  ## run the tests
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## check style, types and that notebooks hold no outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify notebooks/*.ipynb

# The layout, README beside the first notebook, is brought in once: what its user makes of it stays in .lab, and the
# layouts of other projects are not touched.
lab: $(READY)  ## open README and notebooks in JupyterLab, on this machine only
	@test -d .lab || $(LAYOUT) $(BIN)/jupyter lab workspaces import notebooks/spin.jupyterlab-workspace
	$(MALLOC) $(LAYOUT) $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --port=$(PORT) --notebook-dir=. --LabApp.default_url=/lab/workspaces/spin $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(READY)  ## time the kit against its peers (about 50 minutes); writes benchmarks/results/
	$(MALLOC) $(BIN)/python -m benchmarks

lock:  ## rewrite requirements.lock from pyproject.toml
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install -q -e '.[dev,judge]'
	sh -c '{ sed -n "/^#/p;/^#/!q" requirements.lock; $(VENV)-lock/bin/python -m pip freeze --all --exclude-editable | sed "s/+cpu$$//" | grep -v "^pip==" | grep -v "^nvidia-"; } > requirements.lock.new'
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

clean:  ## delete artifacts and caches; results and figures stay
	rm -rf artifacts site jupyter_execute .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
