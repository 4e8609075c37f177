# Two commands, each enough by itself: `make quickstart` and `make test`. README.md shows the plain lines that they stand for.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint versions clean

quickstart: .venv/.installed
	$(BIN)/python tools/quickstart.py

test: .venv/.installed
	$(BIN)/pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

versions: .venv/.installed
	@$(BIN)/python --version
	@$(BIN)/pip freeze --exclude-editable

# The stamp is newer than what it was made from, so a second call installs nothing and starts at once.
.venv/.installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dense,dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info work_dirs/quickstart
