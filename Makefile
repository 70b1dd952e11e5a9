# Everything a newcomer runs. Each target needs only python3 (>= 3.11) and pip.
.PHONY: study test lint clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := train,serve,report,figures,test,lint

study: $(STAMP)
	$(BIN)/isoflop study examples/quickstart.toml

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv build
