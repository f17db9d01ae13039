# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AFFECT := $(BIN)/affect

.PHONY: help setup demo test bench clean

help:
	@echo "make demo   a synthetic corpus, trained pooled and federated, side by side (under three minutes)"
	@echo "make test   lint, types, import layers and tests"
	@echo "make bench  speed and memory, written to bench.json"
	@echo "            (BENCH='--video CLIP --reference CSV' for level 1, with OPENFACE_HOME)"
	@echo "make setup  the environment in $(VENV) alone"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,simulation,sweep]'
	touch $@

demo: setup
	rm -rf demo
	$(AFFECT) synth --cache demo/cache --subjects 12 --seconds 150
	$(AFFECT) fit -c experiments/demo.yaml --name=centralised
	$(AFFECT) federate -c experiments/demo.yaml --name=federated
	$(AFFECT) compare demo/runs/centralised/* demo/runs/federated/* --out demo/report.html
	@echo
	@echo "Done. The runs are in demo/runs (figures in each run's figures/), the comparison in demo/report.html."
	@echo "Next: $(AFFECT) predict $$(ls -d demo/runs/federated/*) demo/cache --out demo/predictions.csv"
	@echo "      or your own data: data/README.md (or activate $(VENV) and type affect)"

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

bench: setup
	$(BIN)/pip install --quiet --no-deps --target build/peers --upgrade -r benchmarks/peers.txt || echo "no peers"
	PYTHONPATH=build/peers $(BIN)/python benchmarks/bench.py --out bench.json $(BENCH)

clean:
	rm -rf demo bench.json
