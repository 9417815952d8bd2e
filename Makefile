# make demo, make test, make bench: each sets up what it needs first.
# make gpu [DATA=folder of Penn Treebank]: with $(PYTHON) and its packages as they are.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/dnirnn demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(DATA),--data "$(DATA)")

$(VENV)/.requirements: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Editable: only a change of the sources below needs the extension built again.
$(VENV)/.installed: $(VENV)/.requirements setup.py pyproject.toml dnirnn/version.py $(shell find csrc -type f)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build dnirnn/_C*.so dnirnn/_build.json
