# Set-up, demo, tests and checks. `make` alone lists them. Everything is installed into .venv, nothing else is touched.

VENV := .venv
BIN := $(VENV)/bin
IN_RANGE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

# Which Python makes .venv: python3 if it is one of 3.10 to 3.13, else the newest of these.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$name -c '$(IN_RANGE)' 2>/dev/null && { echo $$name; break; }; done)

# CUDA=1 builds Horovod with NCCL; put your CUDA build of torch into .venv first.
CUDA ?=
INSTALL_FLAGS := $(if $(filter-out 0,$(CUDA)),--cuda)

# The demo's run. All of it can be set: make demo DEMO_RANKS=4 DEMO_EPOCHS=10 DEMO_MODEL=yolo11n
# Each family of models has hyperparameters of its own.
DEMO_MODEL ?= yolov5n
DEMO_FAMILY := $(if $(filter yolov8% yolo11% yolo26% %u,$(DEMO_MODEL)),anchor_free,anchor_based)
DEMO_RANKS ?= 2
# The anchor-free models cost more an epoch and need fewer.
DEMO_EPOCHS ?= $(if $(filter anchor_free,$(DEMO_FAMILY)),14,24)
DEMO_DATA ?= datasets/digits
DEMO_RUN ?= runs/demo
DEMO_LAUNCH ?= horovodrun --gloo -np $(DEMO_RANKS) python
DEMO_TRAIN ?= train.py --data $(DEMO_DATA)/data.yaml --cfg $(DEMO_MODEL) --img 192 --batch-size 16 --epochs $(DEMO_EPOCHS) \
	--hyp horovod_yolo/config/hyp.digits.$(DEMO_FAMILY).yaml --optimizer AdamW --cos-lr --workers 0 --cache ram --device cpu \
	--project $(dir $(DEMO_RUN)) --name $(notdir $(DEMO_RUN)) --exist-ok

# Without them the tests that need them are skipped, loudly. libpmix-dev is for `srun --mpi=pmix`, faketime for a
# host whose clock is wrong, debootstrap for the Dockerfile's steps, chromium for the pages of reports, the last line
# for an RTSP server.
TEST_PACKAGES := iproute2 openssh-server openssh-client slurmctld slurmd slurm-client munge libpmix-dev faketime debootstrap chromium \
	python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good

# How many files of tests run at a time. 0: one test after the other, in one process.
TEST_WORKERS ?= 2
FUZZ_SECONDS ?= 600
MUTANTS ?=
BENCH ?=

SCRIPTS := $(wildcard launch/*.sh launch/*.sbatch launch/clouds/*.sh horovod_yolo/install/*.sh docker/*.sh) .ci/run
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
TESTS = $(PYTEST) -m 'not slow' -n $(TEST_WORKERS) --dist loadfile

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Where this is set, each of the many processes compiles all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo docs packages test test-slow fuzz mutants bench bench-quick check fmt clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The script itself sees at once when nothing is to be done.
setup: $(VENV)/.packages  ## .venv with the pinned packages, this package and Horovod
	@PYTHON=$(BIN)/python launch/install_horovod.sh $(INSTALL_FLAGS)

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.10 to 3.13 found. Install one, or name it: make PYTHON=/path/to/python' >&2; exit 2; }
	@$(PYTHON) -c '$(IN_RANGE)' || { echo 'make: $(PYTHON) is not a Python 3.10 to 3.13. Name another: make PYTHON=/path/to/python' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'make: $(PYTHON) cannot make environments. Install its venv package: apt-get install python3-venv' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Another torch that is already in .venv stays: its paragraph of the constraints gives way to what is there.
$(VENV)/constraints.txt: constraints.txt setup.py | $(BIN)/python
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null); \
	if [ -z "$$version" ] || grep -qx "torch==$${version%%+*}" constraints.txt; then cp constraints.txt $@; \
	else { sed '/^# torch and/,/^$$/d' constraints.txt; echo "torch==$$version"; } >$@; fi

$(VENV)/.packages: $(VENV)/constraints.txt
	$(PIP) install -c $< setuptools wheel torch
	$(PIP) install -c $< --no-build-isolation -e '.[dev]'
	@touch $@

$(DEMO_DATA)/data.yaml: | $(VENV)/.packages
	$(BIN)/horovod-yolo data digits --out $(DEMO_DATA)

demo: setup $(DEMO_DATA)/data.yaml  ## train on the built-in data set with two ranks, show where the results are
	$(DEMO_LAUNCH) $(DEMO_TRAIN)
	@echo
	@echo 'report   $(DEMO_RUN)/report.html'
	@echo 'curves   $(DEMO_RUN)/results.png, $(DEMO_RUN)/results.csv'
	@echo 'weights  $(DEMO_RUN)/weights/best.pt, $(DEMO_RUN)/weights/last.pt'

docs: setup  ## the documents as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

packages:  ## Debian packages for the tests over several hosts, Slurm and Kubernetes; needs root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES)

test: setup  ## the tests, but for the slow ones; first those that start no whole jobs
	$(TESTS) tests/unit tests/helpers tests/fuzz tests/test_architecture.py
	$(TESTS) tests/mutants tests/gpu tests/parallel tests/integration tests/cluster

test-slow: setup  ## the slow tests
	$(PYTEST) -m slow

fuzz: setup  ## broken and hostile files for FUZZ_SECONDS (600), new ones every time
	end=$$(( $$(date +%s) + $(FUZZ_SECONDS) )); while [ $$(date +%s) -lt $$end ]; do $(PYTEST) tests/fuzz || exit 1; done

mutants: setup  ## small mistakes in the code, one at a time: does a test see each? MUTANTS="--sample 30 losses"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(MUTANTS)

bench: setup  ## make the tables of the docs anew: a night on an idle machine. BENCH="data nms"
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/tables.py $(BENCH)

bench-quick: setup  ## do the benchmarks run? Minutes; no page changes
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/tables.py --quick $(BENCH)

check: setup  ## lint, format, types, spelling, shell scripts, Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/hadolint $(wildcard docker/Dockerfile.*)

fmt: setup  ## let ruff mend and format the Python files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, runs, made data sets and caches; Horovod's wheels stay in the user's cache
	rm -rf $(VENV) runs datasets build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
