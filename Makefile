# make demo           condense real images and see how good they are
# make test           run the whole test suite, then the ops' tests in their other lanes
# make test-lanes     the latter only: Triton's interpreter, and PyTorch and the C++ core held down to fewer instructions
# make lint types     style and types, as continuous integration checks them
# make compile-check  compile every Triton kernel for the GPUs it is meant for, without one; registers and spills
# make sanitize       the C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make test-oldest    the tests of the ops with the oldest torch, triton and numpy that are supported
# make bench          every benchmark that a CPU can run, at most 15 minutes; DATA=folder of data sets
# make fake-gpu       graphs, launches and memory of the GPU path, on CUDA devices that are not there (2 minutes)
# make browser-test   the tests of the report in headless Chromium (Debian: apt-get install chromium chromium-driver)
# make gpu-test       the tests that need a CUDA device
# make gpu-report     every benchmark that needs one, at most 8 minutes; OUT=folder, DATA=folder of data sets; leaves
#                     results.tar.gz in OUT; FASTDM_COMMIT=… names the commit where there is no git
# make gpu-accuracy   what CIFAR-10 is condensed to on one, at most 10 minutes; DATA=folder that holds it, OUT=folder
#                     (all in PYTHON's own environment: torch, triton and pytest are there, nothing is downloaded)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test browser-test test-lanes test-oldest fake-gpu gpu-test lint types compile-check sanitize bench gpu-report gpu-accuracy clean

demo: $(VENV)/installed
	$(PY) -m examples.digits

# Most tests compute on one core; more processes would take more memory than some machines have.
PYTEST = $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/installed
	$(PYTEST)
	$(MAKE) test-lanes

# test_core.py builds a program that goes through the instruction sets by itself.
OPS := $(dir $(wildcard tests/kernels/*/__init__.py))
ON_CPU := $(OPS) tests/csrc tests/compat --ignore tests/csrc/test_core.py
test-lanes: $(VENV)/installed
	TRITON_INTERPRET=1 $(PYTEST) $(OPS)
	FASTDM_CPU=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(ON_CPU)
	FASTDM_CPU=plain ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(ON_CPU)

browser-test: $(VENV)/installed
	$(PY) -m pytest -m browser tests/applications

# An environment of its own: triton 3.6's interpreter needs a numpy before 2.4.
test-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install $(if $(wildcard .venv-oldest),--quiet) \
		'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4' --editable '.[dev]'
	.venv-oldest/bin/python -m pytest tests/kernels tests/condensation/test_step.py tests/test_augmentation.py
	TRITON_INTERPRET=1 .venv-oldest/bin/python -m pytest $(OPS)

# What a graph, an allocator and a launch do without a GPU; with another environment's torch: make fake-gpu PY=….
fake-gpu: $(VENV)/installed
	$(PY) -m tests.fakegpu

# torch and triton are those that are there: a machine with a GPU may have no network. First what the product needs, then
# the ops, whose kernels are compiled by several processes where pytest-xdist is there.
# A GPU runs nothing of the C++ core, which is left out where it cannot be built.
install-here = $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
gpu-test: PARALLEL = $(shell $(PYTHON) -c 'import xdist' 2> /dev/null && echo -n 8)
gpu-test:
	$(install-here) || FASTDM_PURE=1 $(install-here)
	$(PYTHON) -m pytest -v tests/gpu --ignore tests/gpu/test_sanitizer.py; first=$$?; \
	FASTDM_TEST_DEVICE=cuda $(PYTHON) -m pytest -v $(PARALLEL) $(OPS); second=$$?; \
	$(PYTHON) -m pytest -v tests/gpu/test_sanitizer.py && test $$first$$second = 00

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp tests/csrc/*.h tests/csrc/*.cpp tests/fakegpu/*.c)

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
	$(PY) -m bench.run cpu $(if $(DATA),--data $(DATA))

gpu-report: KIND = gpu
gpu-accuracy: KIND = accuracy
gpu-report gpu-accuracy:
	$(install-here) || FASTDM_PURE=1 $(install-here)
	$(PYTHON) -m bench.run $(KIND) $(if $(OUT),--out $(OUT)) $(if $(DATA),--data $(DATA))

# Checked before pip starts: it would download gigabytes first and fail to build the C++ core afterwards.
needs = { echo "fastdm needs $(1) (Debian, Ubuntu: apt-get install $(2))"; exit 1; }
define check_machine
	@command -v $(PYTHON) >/dev/null || $(call needs,Python 3.11 or newer,python3-venv)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastdm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call needs,Python's venv module,python3-venv)
endef
# Not needed with FASTDM_PURE=1, which leaves the C++ core out.
define check_compiler
	@test -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
		$(call needs,Python's header files,python3-dev)
	@echo '#include <vector>' | \
		$${CXX:-$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("CXX"))')} \
		-std=c++17 -fsyntax-only -x c++ - 2>/dev/null || $(call needs,a C++17 compiler,g++)
endef

define announce
	@echo "Installing fastdm, PyTorch with its CUDA libraries, and test tools into $(VENV)."
	@echo "About 3.5 GB to download, 6 GB on disk, 2 to 10 minutes. For a CPU only, 0.7 GB to download and 2.4 GB on disk:"
	@echo "    make TORCH_INDEX=https://download.pytorch.org/whl/cpu $(MAKECMDGOALS)"
endef

# The first installation shows pip's progress; later ones, after a change in csrc/, are short and quiet.
$(VENV)/installed: pyproject.toml setup.py fastdm/version.py $(wildcard csrc/*)
	$(check_machine)
	$(if $(filter-out 0,$(FASTDM_PURE)),,$(check_compiler))
	$(if $(TORCH_INDEX)$(wildcard $@),,$(announce))
	@$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PY) -m pip install torch torchvision --index-url $(TORCH_INDEX))
	$(PY) -m pip install $(if $(wildcard $@),--quiet) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastdm/_native*.so
