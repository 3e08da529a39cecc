# Python and make are enough: each target makes .venv itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test check format conformance bench clean

install: $(STAMP)

# The stamp is written last: an interrupted installation is repeated.
$(STAMP): pyproject.toml hatch_build.py $(wildcard proxyless/protos/*.proto)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing proxyless and its development tools into $(VENV) (once; about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]" --group dev
	@touch $@

demo: $(STAMP)
	@$(BIN)/proxyless dev examples/fastapi_app $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

conformance: $(STAMP)
	$(BIN)/python -m tests.conformance $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist
