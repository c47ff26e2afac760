# make run       start the gateway on config/gateway.yaml; needs Python 3.11+ and nothing else
# make demo      a page that follows a shop over a gateway of its own: examples/orders
# make test      run the tests that need Python alone
# make test-all  run every test, those of the oldest and newest libraries too; as root on Debian it installs the browsers,
#                proxies and servers that they need
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= config/gateway.yaml
# Most tests wait for servers: more of them at once than there are cores.
TESTERS ?= 4
MINUTES ?= 60
PYTEST = $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal
# Names a step, and prints its wall time.
STEP = @sh tests/timed.sh

.PHONY: run demo install test test-all test-extended check format docs client types clients-table bench soak image release \
  test-versions test-floors test-newest debian bench-debian clean

run: $(VENV)/.installed
	$(BIN)/sse-gateway run --config $(CONFIG) --hints

demo: $(VENV)/.installed
	@$(BIN)/python examples/orders/demo.py

install: $(VENV)/.installed

test: $(VENV)/.developed
	$(STEP) test $(PYTEST) -m "not extended"

test-all: test test-extended test-versions

test-extended: $(VENV)/.developed debian
	$(STEP) "build clients" $(BIN)/python -m tests.clients.build
	$(STEP) test-extended $(PYTEST) -m extended

check: $(VENV)/.developed
	$(STEP) "check format" $(BIN)/ruff format --check
	$(STEP) "check lint" $(BIN)/ruff check
	$(STEP) "check types" $(BIN)/mypy
	$(STEP) "check layers and schema" $(BIN)/python -m pytest tests/test_layers.py tests/config/test_schema.py

format: $(VENV)/.developed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What is generated from the model: the schema and the reference tables.
docs: $(VENV)/.installed
	$(BIN)/sse-gateway schema > config/schema.json
	$(BIN)/python docs/reference.py

# The module that the gateway serves and npm packs, from client/src. Needs Node 20 and npm, and no Python.
client: client/node_modules/.npm-ci
	cd client && npm run --silent build

# The declarations that TypeScript reads, from the same sources.
types: client/node_modules/.npm-ci
	cd client && npm run --silent types

client/node_modules/.npm-ci: client/package-lock.json
	cd client && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# What real clients make of streams: runs them, and writes docs/clients.md.
clients-table: $(VENV)/.developed debian
	UPDATE_CLIENTS=1 $(PYTEST) tests/clients

# All scenarios, or some: make bench SCENARIOS="fanout idle". Writes docs/benchmarks.
bench: $(VENV)/.benched bench-debian
	$(BIN)/python -m bench $(SCENARIOS)

# Looks for growth under churn, on each log: make soak MINUTES=60. Writes docs/benchmarks/soak.md.
soak: $(VENV)/.developed
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

image:
	docker build --tag sse-gateway:dev .

# dist/: sdist, wheel, and the SBOM of what the wheel installs.
release:
	PYTHON=$(PYTHON) sh release/build.sh

# The oldest and the newest versions that setup.cfg allows of the gateway's own libraries, each in an environment of its
# own, made anew: what touches them most is tested with both.
VERSIONS = tests/auth tests/broker tests/config/test_load.py tests/http tests/hub tests/streams/quotas tests/observability \
  tests/sources tests/streams tests/webhooks tests/observability/test_logging.py tests/test_versions.py
TEST_VERSIONS = -m pytest -n $(TESTERS) --dist worksteal -m "not extended" --ignore tests/http/routes/test_client.py $(VERSIONS)

test-versions: test-floors test-newest

test-floors: $(VENV)/.developed
	rm -rf build/floors && $(PYTHON) -m venv build/floors
	$(BIN)/python -m tests.versions > build/floors/floors.txt
	build/floors/bin/python -m pip install --quiet --disable-pip-version-check -e '.[versions]' -r build/floors/floors.txt
	$(STEP) "test floors" build/floors/bin/python $(TEST_VERSIONS)

test-newest: $(VENV)/.developed
	rm -rf build/newest && $(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[versions]'
	$(STEP) "test newest" build/newest/bin/python $(TEST_VERSIONS)

debian:
	$(STEP) "install programs" sh tests/install-debian.sh

bench-debian:
	@sh bench/install-debian.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sse-gateway needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@

$(VENV)/.benched: $(VENV)/.developed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@
