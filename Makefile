# make demo, make test, make bench, make lint, make docs: each sets up what it needs first.
# make gpu [DATA=folder of Penn Treebank]: with $(PYTHON) and its packages as they are.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint docs gpu clean

demo: $(VENV)/.installed
	$(BIN)/dnirnn demo

# A worker a core, of one thread: with more threads than cores they wait for each other, and the suite
# takes six times as long.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# What CI checks without building anything.
lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -type f)

docs: $(VENV)/.installed $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is build/site/index.html"

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(DATA),--data "$(DATA)")

$(VENV)/.requirements: requirements.txt
	@echo "1/2 a virtual environment in $(VENV), with the packages of requirements.txt: a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Editable: only a change of the sources below needs the extension built again.
$(VENV)/.installed: $(VENV)/.requirements setup.py pyproject.toml dnirnn/version.py $(shell find csrc -type f)
	@echo "2/2 the C++ extension, built once: two minutes or three"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/.lint: Makefile
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		"ruff==0.17.6" "mypy==2.4.1" "clang-format==23.1.5"
	touch $@

$(VENV)/.docs:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26"
	touch $@

clean:
	rm -rf $(VENV) build dnirnn/_C*.so dnirnn/_build.json
