PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
BROWSER := .venv-browser
# One run, picture, evaluation and resume of every kind.
SMOKE := tests/commands/test_cli.py tests/commands/test_sample.py tests/commands/test_evaluate.py tests/commands/test_resume.py tests/core tests/interop

.PHONY: install quickstart test test-isa test-lowest test-slow test-wheel test-browser test-gpu docs lint

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lint]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

install: $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

# The numerical tests on three processors, imitated on any x86-64 one, whose sums differ most in order and in rounding.
test-isa: test-isa-sse42 test-isa-avx test-isa-avx2

test-isa-sse42: export ATEN_CPU_CAPABILITY = default
test-isa-sse42: export ONEDNN_MAX_CPU_ISA = SSE41
test-isa-sse42: export MKL_CBWR = COMPATIBLE
test-isa-sse42: export OPENBLAS_CORETYPE = Nehalem
test-isa-sse42: export XLA_FLAGS = --xla_cpu_max_isa=SSE4_2

test-isa-avx: export ATEN_CPU_CAPABILITY = default
test-isa-avx: export ONEDNN_MAX_CPU_ISA = AVX
test-isa-avx: export MKL_CBWR = AVX
test-isa-avx: export OPENBLAS_CORETYPE = Sandybridge
test-isa-avx: export XLA_FLAGS = --xla_cpu_max_isa=AVX

test-isa-avx2: export ATEN_CPU_CAPABILITY = avx2
test-isa-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-isa-avx2: export MKL_CBWR = AVX2
test-isa-avx2: export OPENBLAS_CORETYPE = Haswell
test-isa-avx2: export XLA_FLAGS = --xla_cpu_max_isa=AVX2
test-isa-avx2: export OMP_NUM_THREADS = 2

ifeq ($(shell uname -m),x86_64)
test-isa-%: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile -m "numeric and not slow and not gpu"
else
test-isa-%:
	@echo "$@: only an x86-64 processor can be made to behave like another; left out on $(shell uname -m)."
endif

# The lowest versions that setup.cfg allows. They are for Python 3.11.
$(LOWEST)/.installed: setup.cfg pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[test]'
	touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n auto $(SMOKE)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The wheel, installed outside the checkout.
test-wheel: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

# The page of `lightning-vfs demo` in Chromium (Debian: apt-get install chromium). Gradio needs an older Pillow than the
# one that everything else is tested with.
$(BROWSER)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BROWSER)
	grep -v '^pillow==' constraints.txt > $(BROWSER)/constraints.txt
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check -c $(BROWSER)/constraints.txt -e '.[browser]'
	touch $@

test-browser: $(BROWSER)/.installed
	$(BROWSER)/bin/python -m pytest -m browser tests/browser

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu

# The site of the documentation, in site/. A link that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
