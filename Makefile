# make demo    condense real images and see how good they are
# make test    run the whole test suite
# make lint types     style and types, as continuous integration checks them
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test lint types clean

demo: $(VENV)/installed
	$(PY) -m examples.digits

test: $(VENV)/installed
	$(PY) -m pytest

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# mypy follows folders, not setup.py: show it kernels/ where the package has it.
types: $(VENV)/installed
	rm -rf build/types && mkdir -p build/types/fastdm
	ln -s $(CURDIR)/fastdm/* build/types/fastdm/
	ln -s $(CURDIR)/kernels build/types/fastdm/kernels
	cd build/types && $(CURDIR)/$(PY) -m mypy --config-file $(CURDIR)/pyproject.toml -p fastdm

$(VENV)/installed: pyproject.toml setup.py $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastdm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastdm/_native*.so
