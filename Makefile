PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-stories test-observability test-page dashboards docs drill lint format stubs validate clean lock

run: .venv/.run
	$(BIN)/pointsman up --config examples/two-sites --simulate

test: .venv/.dev
	$(BIN)/pytest -q -n 2 --dist worksteal

# Rollouts, experiments, drills and benchmarks from begin to end: as long as all other tests together.
test-stories: .venv/.dev
	$(BIN)/pytest -q -n 2 --dist worksteal -m story tests/e2e tests/bench_scripts

# Dashboards, rules and alerts against a real Prometheus that watches a real fleet: Debian's package is needed.
test-observability: .venv/.dev
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { \
		echo 'prometheus and promtool are not installed: apt-get install -y --no-install-recommends prometheus' >&2; exit 1; }
	$(BIN)/pytest -q -n 2 --dist worksteal -m observability tests/observe tests/docs

# The live page in headless Chromium, in front of a real fleet: Debian's package is needed.
test-page: .venv/.dev
	@command -v chromium >/dev/null || { \
		echo 'chromium is not installed: apt-get install -y --no-install-recommends chromium' >&2; exit 1; }
	$(BIN)/pytest -q -m page tests/desk

docs: .venv/.dev
	$(BIN)/python -m pointsman.app.cli_reference
	$(BIN)/python -m pointsman.app.reference

dashboards: .venv/.dev
	$(BIN)/python -m pointsman.app.observe deploy

# Every fault in the embedded set-up, with the bars next to what was measured; docs/failover.md. RUNS=1 takes minutes.
RUNS ?= 20
drill: .venv/.dev
	$(BIN)/pointsman drill all --runs $(RUNS) --report drills

lint: .venv/.dev stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: .venv/.dev
	$(BIN)/python protos/genstubs.py typings core xds extproc

# The install: with uv where it is there, else with venv and pip. Hashes are checked either way.
.venv/.run: requirements.txt pyproject.toml
	@sh deploy/install.sh $(PYTHON) requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt pyproject.toml
	@sh deploy/install.sh $(PYTHON) requirements-dev.txt
	@touch .venv/.run $@

lock: .venv/.dev
	$(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-header --no-emit-index-url \
		--no-emit-find-links --extra envoy --extra build pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-header --no-emit-index-url \
		--no-emit-find-links --extra envoy --extra build --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean:
	rm -rf .venv typings .mypy_cache .ruff_cache .pytest_cache
