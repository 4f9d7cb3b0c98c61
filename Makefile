# make demo           condense real images and see how good they are
# make test           run the whole test suite
# make lint types     style and types, as continuous integration checks them
# make compile-check  compile every Triton kernel for the GPUs it is meant for, without one; registers and spills
# make sanitize       the C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make test-oldest    the tests of the ops with the oldest torch, triton and numpy that are supported
# make bench          every benchmark that a CPU can run, at most 15 minutes; DATA=folder of data sets
# make browser-test   the tests of the report in headless Chromium (Debian: apt-get install chromium chromium-driver)
# make gpu-test       the tests that need a CUDA device
# make gpu-report     every benchmark that needs one, at most 8 minutes; OUT=folder, DATA=folder of data sets
#                     (both in PYTHON's own environment: torch, triton and pytest are there, nothing is downloaded)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test browser-test test-oldest gpu-test lint types compile-check sanitize bench gpu-report clean

demo: $(VENV)/installed
	$(PY) -m examples.digits

test: $(VENV)/installed
	$(PY) -m pytest

browser-test: $(VENV)/installed
	$(PY) -m pytest -m browser tests/applications

# An environment of its own: triton 3.6's interpreter needs a numpy before 2.4.
test-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet 'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4' --editable '.[dev]'
	.venv-oldest/bin/python -m pytest tests/kernels tests/test_step.py tests/test_augmentation.py

# torch and triton are those that are there: a machine with a GPU may have no network.
gpu-test:
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PYTHON) -m pytest tests/gpu

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# mypy follows folders, not setup.py: show it kernels/ where the package has it.
types: $(VENV)/installed
	rm -rf build/types && mkdir -p build/types/fastdm
	ln -s $(CURDIR)/fastdm/* build/types/fastdm/
	ln -s $(CURDIR)/kernels build/types/fastdm/kernels
	ln -s $(CURDIR)/bench $(CURDIR)/tests build/types
	cd build/types && $(CURDIR)/$(PY) -m mypy --config-file $(CURDIR)/pyproject.toml -p fastdm -p bench

compile-check: $(VENV)/installed
	$(PY) -m fastdm.kernels.compile_check --budget bench/register_budget.json

sanitize: $(VENV)/installed
	tests/csrc/sanitize.sh $(PY)

bench: $(VENV)/installed
	$(PY) -m bench.cpu_report $(if $(DATA),--data $(DATA))

gpu-report:
	$(PYTHON) -m bench.gpu_report $(if $(OUT),--out $(OUT)) $(if $(DATA),--data $(DATA))

$(VENV)/installed: pyproject.toml setup.py $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastdm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastdm/_native*.so
