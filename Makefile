# Two commands, each enough by itself: `make quickstart` and `make test`. README.md shows the plain lines that they stand for.
PYTHON ?= python3
BIN := .venv/bin
# A hybrid backbone and its transformer twin; the first is the reference of the speed ratios.
QUICKSTART := $(foreach mixer,bi-wkv attention,configs/shapes/hybrid-$(mixer)-test_segformer_1xb8-400_shapes-128x128.py)

.PHONY: quickstart test tables compile-report lint versions clean

quickstart: .venv/.installed
	$(BIN)/python tools/compare.py $(QUICKSTART) --out work_dirs/quickstart --fresh

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadgroup

# Tables, plots and reports of README, docs and results/, from their rows; a test fails where they disagree.
tables: .venv/.installed
	$(BIN)/python tools/make_tables.py

# Every Triton kernel for every architecture, five to ten minutes of one core; the tests compile for all architectures what has changed.
compile-report: .venv/.installed
	$(BIN)/python -m linescan.kernels.compile_report

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

versions: .venv/.installed
	@$(BIN)/python --version
	@$(BIN)/pip freeze --exclude-editable

# MMSegmentation asks for opencv-python, whose cv2 needs the libraries of a desktop (libxcb); the headless build has the same files without them.
# The stamp is newer than what it was made from, so a second call installs nothing and starts at once.
.venv/.installed: setup.py constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dense,dev]"
	$(BIN)/python -m pip install --constraint constraints.txt --force-reinstall --no-deps opencv-python-headless
	touch $@

clean:
	rm -rf .venv build *.egg-info work_dirs/quickstart
