# Each target sets itself up: Python 3.11 or later, make and a package index are all it takes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := demo
PHOTOS := src/dreamtune/assets/photos/cherries
PEER ?=

.PHONY: demo test faults lint bench clean

demo: $(READY)  ## the whole job on bundled pictures; ends with the path of a grid
	@mkdir -p $(DEMO)
	$(BIN)/dreamtune prep $(PHOTOS) --recipe demo --store $(DEMO)/artifacts
	$(BIN)/dreamtune train --recipe demo --store $(DEMO)/artifacts
	$(BIN)/dreamtune sample --prompt-file recipes/demo.txt --recipe demo \
		--store $(DEMO)/artifacts --out $(DEMO)/grid.png --force

test: lint  ## every test, in two processes
	$(BIN)/python -m pytest -n 2

faults: $(READY)  ## every power cut, full disk, kill, signal and harmed file; hours
	DREAMTUNE_FAULTS=all $(BIN)/python -m pytest -n 2 --timeout 20000 tests/faults \
		tests/test_artifacts.py tests/test_checkpoints.py tests/test_formats_lora.py tests/test_resume.py

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## ours beside the diffusers script: make bench PEER=<diffusers/examples>
	$(BIN)/python -m bench.train $(if $(PEER),--peer $(PEER))

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(DEMO)
