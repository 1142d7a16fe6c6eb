# Everything that is done in a checkout. Needs Python 3.11 or later, pip and make; the rest is installed,
# in the versions of requirements/, into .venv.

# Another interpreter: make PYTHON=python3.13 test
PYTHON ?= python3
# Other versions of what the library depends on, those of requirements/WITH.txt: make WITH=lowest test
WITH ?=
# Arguments for the tool behind a target: make test ARGS='-k resume'
ARGS ?=
# Test processes: a number, or auto for one per core.
JOBS ?= auto
# A process that has nothing left to do takes tests over from another.
SPREAD := -n $(JOBS) --dist worksteal
# What is quick among the tests: see the markers in pyproject.toml.
FAST := -m 'not proof and not slow' --ignore=tests/proof

# Each interpreter that was asked for, and each choice of versions, has an environment of its own.
ifneq ($(origin PYTHON),file)
VERSION := -$(shell $(PYTHON) -c 'import platform, sys; print(platform.python_version() + sys.abiflags)')
endif
VENV := $(if $(VERSION)$(WITH),build/venv$(VERSION)$(WITH:%=-with-%),.venv)
BIN := $(VENV)/bin
BENCH_VENV := build/venv-bench$(VERSION)
SDKS_VENV := build/venv-sdks$(VERSION)
PEERS_VENV := build/venv-peers$(VERSION)
LOCK_VENV := build/venv-lock
UV := uv==0.13.8
COMPILE = $(LOCK_VENV)/bin/uv pip compile --quiet $(ARGS) --universal --python-version 3.11 \
	--generate-hashes --no-header --no-emit-index-url

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Pyright comes with its wheel and node with its own: look for nothing newer.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# What the caller's shell has set must not change what is imported or run here. Without bytecode on disk each
# test process would compile the tests anew, which takes longer than many of them.
export PYTHONNOUSERSITE := 1
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER
unexport PYRIGHT_PYTHON_FORCE_VERSION PYRIGHT_PYTHON_PYLANCE_VERSION PYRIGHT_PYTHON_NODE_VERSION

.DELETE_ON_ERROR:
.PHONY: help venv demo examples test test-fast test-library test-sdks test-benchmarks coverage lint types layers migrations-check \
	wheel smoke check audit bench bench-peers proof mutants lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | \
		while read -r name text; do printf '  %-18s%s\n' "$$name" "$$text"; done

# -- environments ------------------------------------------------------------------------------------

# $(call new-venv,DIRECTORY,LOCKS): an environment that holds what the locks say, the later ones over the
# earlier, and nothing else. Some systems ship Python without ensurepip; there the system's pip fills it.
define new-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "This needs Python 3.11 or later, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@mkdir -p $(dir $(1))
	@echo "Installing $(2) into $(1)"
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv --clear $(1) && pip="$(1)/bin/python -m pip"; \
	else \
		$(PYTHON) -m venv --clear --without-pip $(1) && pip="$(PYTHON) -m pip --python $(1)/bin/python"; \
	fi && for lock in $(2); do $$pip install -qq --require-hashes -r $$lock || exit; done
endef

# The library itself, from the source tree. Its build backend is in the lock, so nothing else is fetched.
define install-checkout
	@$(1)/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@$(1)/bin/python -m pip check --quiet
	@touch $@
endef

$(VENV)/.locked: requirements/dev.txt $(WITH:%=requirements/%.txt)
	$(call new-venv,$(VENV),$^)
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(call install-checkout,$(VENV))

$(BENCH_VENV)/.locked: requirements/bench.txt
	$(call new-venv,$(BENCH_VENV),$<)
	@touch $@

$(BENCH_VENV)/.installed: $(BENCH_VENV)/.locked pyproject.toml
	$(call install-checkout,$(BENCH_VENV))

$(SDKS_VENV)/.locked: requirements/sdks.txt
	$(call new-venv,$(SDKS_VENV),$<)
	@touch $@

$(SDKS_VENV)/.installed: $(SDKS_VENV)/.locked pyproject.toml
	$(call install-checkout,$(SDKS_VENV))

$(PEERS_VENV)/.locked: requirements/peers.txt
	$(call new-venv,$(PEERS_VENV),$<)
	@touch $@

$(PEERS_VENV)/.installed: $(PEERS_VENV)/.locked pyproject.toml
	$(call install-checkout,$(PEERS_VENV))

venv: $(VENV)/.installed ## set up .venv (again, when a lock or pyproject.toml has changed)

# -- using it ----------------------------------------------------------------------------------------

demo: $(VENV)/.installed ## recorded rollouts under and over their budget; a small agent; budgets that hold
	@$(BIN)/python examples/demo.py $(ARGS)
	@echo; echo '# A small agent with a budget, against a scripted model.'; echo
	@$(BIN)/python examples/agent.py
	@$(BIN)/python examples/budgets.py
	@$(BIN)/python examples/async_agents.py

examples: $(SDKS_VENV)/.installed ## each agent SDK on a budget, and a web service; offline
	@for example in examples/*_sdk.py examples/fastapi_service.py; do \
		echo; echo "# $$example"; $(SDKS_VENV)/bin/python $$example || exit; \
	done

# -- checks ------------------------------------------------------------------------------------------

test: test-library test-sdks ## run the whole test suite

test-library: $(VENV)/.installed ## run the tests that need no agent SDK
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

test-fast: $(VENV)/.installed ## run the tests that take seconds in all: every module, no proof
	HYPOTHESIS_PROFILE=fast $(BIN)/python -m pytest $(SPREAD) $(FAST) $(ARGS)

test-benchmarks: $(VENV)/.installed ## run every benchmark once, in short: that they work
	$(BIN)/python -m pytest benchmarks $(ARGS)

# In one process, so that every line that runs is seen; pyproject.toml has the floor.
coverage: $(VENV)/.installed ## which lines and branches the fast tests run; fails below the floor
	@mkdir -p build
	HYPOTHESIS_PROFILE=fast $(BIN)/python -m coverage run -m pytest -q $(FAST) $(ARGS)
	$(BIN)/python -m coverage report

test-sdks: $(SDKS_VENV)/.installed ## run the tests that need agent SDKs (an environment of their own)
	$(SDKS_VENV)/bin/python -m pytest $(SPREAD) tests/sdks $(ARGS)

lint: $(VENV)/.installed ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The second looks at what users get: the wheel. It asks the first `python` on PATH where packages are.
# Against the libraries of the environment that has the agent SDKs, too.
types: wheel $(SDKS_VENV)/.installed ## pyright, strict, and that every public name of the wheel is fully typed
	PATH="$(abspath $(SDKS_VENV)/bin):$(abspath $(BIN)):$$PATH" pyright
	@rm -rf build/typed
	@$(BIN)/python -m pip install -qq --no-deps --target build/typed dist/*.whl
	PATH="$(abspath $(SDKS_VENV)/bin):$(abspath $(BIN)):$$PATH" PYTHONPATH=build/typed \
		pyright --ignoreexternal --verifytypes goal_state

layers: $(VENV)/.installed ## that imports run downwards only
	$(BIN)/lint-imports

migrations-check: $(VENV)/.installed ## that the migrations make what the metadata says
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	for step in 'upgrade head' 'current --check-heads' check 'downgrade base' 'upgrade head'; do \
		echo "alembic $$step"; \
		$(BIN)/alembic -x url="sqlite:///$$dir/goals.db" $$step; \
		test -s "$$dir/goals.db"; \
	done

wheel: $(VENV)/.installed ## build dist/: the sdist, and the wheel from the sdist
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

smoke: wheel ## install the wheel in a new environment outside the checkout and use it there
	$(BIN)/python .ci/smoke.py dist/*.whl

check: lint types layers migrations-check test test-benchmarks smoke ## all that must hold

# -- now and then ------------------------------------------------------------------------------------

# Which versions have known faults is not kept in a checkout: that takes pip-audit and its data.
audit: $(VENV)/.installed ## ruff's security rules, and the locked dependencies with their licences
	$(BIN)/ruff check --select S goal_state migrations
	@$(BIN)/python .ci/licences.py requirements/dev.txt
	@echo 'Not looked for: known vulnerabilities. With a network: pip-audit --require-hashes -r requirements/dev.txt'

bench: $(BENCH_VENV)/.installed ## run the benchmarks (an environment of their own)
	$(BENCH_VENV)/bin/python -m benchmarks $(ARGS)

bench-peers: $(PEERS_VENV)/.installed ## our budgets beside other libraries' (an environment of their own)
	$(PEERS_VENV)/bin/python -m benchmarks --output benchmarks/results/peers $(ARGS) limits budgets

proof: $(VENV)/.installed ## the evidence at length (about an hour): crashes, power cuts, faults, properties
	HYPOTHESIS_PROFILE=proof $(BIN)/python -m pytest $(SPREAD) tests/proof tests/properties tests/meter \
		tests/codex tests/upgrade tests/test_contention.py tests/test_bad_input.py \
		tests/test_tampered_exports.py $(ARGS)

mutants: $(VENV)/.installed ## mutation testing: changes that no test notices
	$(BIN)/mutmut run $(ARGS)

# Pins stay as they are unless ARGS says otherwise: ARGS=--upgrade, ARGS='--upgrade-package sqlalchemy'.
#   dev.txt             the library with its extras, and what its checks need
#   bench.txt           the same for the benchmarks; constrained by the first, so that what both hold is equal
#   sdks.txt            the library and the agent SDKs that it has adapters for; constrained alike. The wheel
#                       of claude-agent-sdk brings a program of 360 MB that no test starts: without it
#   peers.txt           the library and others that keep budgets, for the benchmarks; constrained alike
#   sqlalchemy-2.0.txt  over dev.txt: the newest SQLAlchemy of the series before
#   lowest.txt          over dev.txt: the oldest versions that pyproject.toml allows the library itself
lock: ## write requirements/ anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(PYTHON) -m venv $(LOCK_VENV)
	@$(LOCK_VENV)/bin/python -m pip install -qq $(UV)
	$(COMPILE) --group dev --extra cli --extra http --extra otel --extra prices --extra zstd \
		pyproject.toml -o requirements/dev.txt
	$(COMPILE) --group build --extra bench --extra cli --extra prices --constraint requirements/dev.txt \
		pyproject.toml -o requirements/bench.txt
	$(COMPILE) --group sdks --extra anthropic --extra claude-agent --extra cli --extra http --extra langchain \
		--extra openai --extra openai-agents --extra otel --extra prices --extra pydantic-ai --extra zstd \
		--constraint requirements/dev.txt --no-binary claude-agent-sdk --emit-build-options pyproject.toml -o requirements/sdks.txt
	$(COMPILE) --group peers --extra cli --constraint requirements/dev.txt pyproject.toml \
		-o requirements/peers.txt
	echo 'sqlalchemy<2.1' | $(COMPILE) - -o requirements/sqlalchemy-2.0.txt
	$(COMPILE) --resolution lowest-direct pyproject.toml -o requirements/lowest.txt

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist mutants .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
