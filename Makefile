# Needs Python >= 3.10, make and pip; everything else is installed into $(VENV). `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
DATA ?=
WORK_DIR ?= work_dirs/$(if $(DATA),$(shell basename -- '$(DATA)'),demo)
MINUTES ?= 9
TORCH ?=
PYTEST_ARGS ?=
V ?=

LOCK := requirements/lock.txt
BIN := $(VENV)/bin
# pip stays silent unless it fails; V=1 shows all it does. Indexes and mirrors are the user's own pip configuration.
PIP = $(BIN)/python -m pip --disable-pip-version-check
QUIET = $(if $(V),,-qq)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-torch lint format docs wheel dist lock cuda-check gpu-check clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

install: ## Make .venv with every pinned dependency and this package, editable
	@$(MAKE) --silent --jobs=2 STEPS=1 $(VENV)/.dependencies $(VENV)/.package

# Else `make -j docs` would take the steps of the installation twice, at the same time.
ifndef STEPS
.NOTPARALLEL:
endif

# Options of tools/finetune.py as variables; EMA=1, TENSORBOARD=1 and RESUME=1 switch on, ARGS takes any others.
BACKBONE ?=
IMAGE_SIZE ?=
EMA ?=
TENSORBOARD ?=
PATIENCE ?=
RESUME ?=
ARGS ?=
OPTIONS = $(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(IMAGE_SIZE),--image-size $(IMAGE_SIZE)) $(if $(EMA),--ema) \
    $(if $(TENSORBOARD),--tensorboard) $(if $(PATIENCE),--patience $(PATIENCE)) $(if $(RESUME),--resume) $(ARGS)

# MINUTES bounds training and evaluation together.
demo: install ## Train, evaluate and draw on generated shapes, or on your own folder: make demo DATA=path [MINUTES=60 BACKBONE=lite1 IMAGE_SIZE=512 EMA=1]
ifeq ($(DATA),)
	@$(BIN)/python tools/make_shapes.py data/shapes
	@$(BIN)/python tools/finetune.py --data data/shapes --config deformable-detr-refine-twostage-dn_lite0_shapes \
	    --minutes $(MINUTES) --work-dir '$(WORK_DIR)' $(OPTIONS)
else
	@$(BIN)/python tools/finetune.py --data '$(DATA)' --minutes $(MINUTES) --work-dir '$(WORK_DIR)' $(OPTIONS)
endif

# One worker and one thread per core: torch's own threads only get into each other's way on small tensors. With bytecode,
# also where the user keeps Python from writing it: the tests start hundreds of processes.
test: install ## Run the tests (PYTEST_ARGS='-m slow' runs the slow ones)
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A venv of its own, which pip fills by the user's own configuration: a plain torch wheel brings gigabytes of CUDA.
test-torch: ## Run the tests of the ops under another torch: make test-torch TORCH=2.10.0
	@test -n '$(TORCH)' || { echo 'test-torch: name a version, say TORCH=2.10.0'; exit 2; }
	@$(MAKE) --no-print-directory install VENV=.venv-torch-$(TORCH)
	@.venv-torch-$(TORCH)/bin/python -m pip --disable-pip-version-check install $(QUIET) torch==$(TORCH)
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv-torch-$(TORCH)/bin/python -m pytest tests/ops $(PYTEST_ARGS)

lint: install ## Check style and formatting, Python and C++
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

format: install ## Apply the formatters
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

ARCHITECTURES ?=
cuda-check: install ## Compile the CUDA kernels, without a GPU, and show what they use; fails if one spills registers [ARCHITECTURES=90]
	@$(BIN)/python csrc/cuda/check.py $(ARCHITECTURES)

STAGES ?=
gpu-check: install ## Build, prove and measure the CUDA side on this machine's GPU: at most 8 minutes [STAGES=build,tests]
	@$(BIN)/python benchmarks/gpu/check.py $(if $(STAGES),--stages $(STAGES))

wheel: install ## Build the wheel into dist/ [FORCE_CUDA=1 brings the CUDA kernels without a GPU]
	@$(PIP) wheel $(QUIET) --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

docs: install $(VENV)/.docs ## Build the documentation into site/; a warning, a missing link or anchor is an error
	@PYTHONPATH= $(BIN)/python -m sphinx -c docs -b html -W --keep-going -q -d build/doctrees . site
	@echo 'site/index.html'

# The wheel comes from the sdist, so that the sdist is complete. PyTorch's libraries are the user's, not packed; the name
# of the repaired wheel tells the oldest Linux whose symbols it needs, read from the extension itself.
dist: install $(VENV)/.release ## Build the sdist and, from it, the wheel into dist/; check both
	@rm -rf dist build/wheel
	@$(BIN)/python -m build --sdist --no-isolation --outdir dist . >/dev/null
	@MMDET_DDETR_EXT=1 $(PIP) wheel $(QUIET) --no-deps --no-build-isolation --wheel-dir build/wheel dist/*.tar.gz
	@PATH='$(abspath $(BIN))':"$$PATH" $(BIN)/python -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	    --wheel-dir dist build/wheel/*.whl 2>build/wheel/repair.log || { cat build/wheel/repair.log; exit 1; }
	@$(BIN)/python -m twine check --strict dist/*

clean: ## Remove build products; data, work_dirs and .venv stay
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# --- installation, a stamp file a step ------------------------------------------------------------------------------

# Debian's Python comes without ensurepip, with which venv would bring pip; any pip >= 22.3 can install into it, too.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, $(PYTHON) is " + sys.version)'
	@echo 'Making $(VENV)'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip $(QUIET) --python $(BIN)/python install pip; \
	} || { \
	    echo 'No virtual environment: $(PYTHON) has neither ensurepip (Debian, Ubuntu: apt install python3-venv) nor a pip >= 22.3' >&2; \
	    exit 1; \
	}
	@touch $@

# torch first, so that pip picks the build of torch, CPU or CUDA, that the user's pip configuration offers; setuptools is
# all else that this package is built with.
$(VENV)/.torch: $(LOCK) | $(VENV)/.python
	@echo 'Installing PyTorch (the largest download)'
	@$(PIP) install $(QUIET) --constraint $(LOCK) torch setuptools
	@touch $@

# The lock file is complete, so nothing is left to resolve. --no-deps also keeps out opencv-python, which mmengine asks for
# and which needs libGL: the lock file has the headless build in its place.
$(VENV)/.dependencies: $(LOCK) $(VENV)/.torch
	@echo 'Installing the dependencies'
	@$(PIP) install $(QUIET) --no-deps --requirement $(LOCK)
	@touch $@

$(VENV)/.%: requirements/%.txt $(VENV)/.dependencies
	@echo 'Installing the tools of $<'
	@$(PIP) install $(QUIET) --no-deps --requirement $<
	@touch $@

# While the dependencies are installed: compiling takes as long. mim looks for site-packages/mmdet_ddetr, which an
# editable install does not have; hence the link.
$(VENV)/.package: pyproject.toml setup.py $(VENV)/.torch
	@echo 'Installing mmdet_ddetr, whose ops are compiled'
	@$(PIP) install $(QUIET) --no-deps --no-build-isolation --editable .
	@ln -sfn '$(CURDIR)/mmdet_ddetr' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mmdet_ddetr"
	@touch $@

# The versions tested, for every Python from 3.10 and every platform. torch's own dependencies come with torch.
lock: ## Renew requirements/*.txt (needs uv)
	@uv pip compile --universal --python-version 3.10 --no-annotate --no-header --quiet --upgrade \
	    --all-extras pyproject.toml --constraint requirements/pins.txt \
	    --no-emit-package pip --output-file $(LOCK)
	@sed -i -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton/d' -e 's/^opencv-python==/opencv-python-headless==/' $(LOCK)
	@for group in docs release; do \
	    uv pip compile --universal --python-version 3.11 --no-annotate --no-header --quiet --upgrade \
	        --group $$group --constraint $(LOCK) --output-file requirements/$$group.txt; \
	done
