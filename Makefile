# Every target makes .venv first, if it isn't there or its requirements have changed. `make` lists the targets.
# PYTHON=… chooses the interpreter that .venv is made from.

BIN    := .venv/bin
STAMP  := .venv/.installed
DEPLOY := .venv/.installed-deploy

# What claims something about speed or memory. LONG= leaves those out that take an hour or more.
BENCHMARKS := decode_context streams score_length where_time_goes first_token cancellation neighbours restore
LONG       := train_memory million_tokens

.PHONY: help venv proto format lint test test-deploy demo demo-cluster fuzz soak bench bench-quick wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

venv: $(STAMP) ## create .venv with everything that development needs, at tested versions

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11 ""; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done; \
	  [ -n "$$python" ] || { \
	    echo "error: Python 3.11 or newer is needed, but python3 is $$(python3 --version 2>/dev/null || echo not installed)." \
	      "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $$python has no venv module. On Debian or Ubuntu: apt-get install" \
	      "$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; }; \
	  echo "creating .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv || exit 1; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(DEPLOY): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[deploy]'
	@touch $@

proto: $(STAMP) ## regenerate reformer.v1 from the .proto files
	$(BIN)/buf format --write
	$(BIN)/python protos/generate.py

format: $(STAMP) ## format the code and apply safe fixes
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/buf format --write

lint: $(STAMP) ## formatting, lint, types, contract, generated code
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf lint
	$(BIN)/python protos/generate.py --check

test: lint ## lint and all tests but those of deploy/
	$(BIN)/python -m pytest

test-deploy: $(DEPLOY) ## render, validate and run what is in deploy/, with the tools themselves; CI runs both
	$(BIN)/python -m pytest tests/deploy

demo: $(STAMP) ## start a server, upload a novel, score it and continue it
	$(BIN)/python examples/demo.py

demo-cluster: $(DEPLOY) ## start three servers and Envoy, kill one, restart all, and see what clients notice
	$(BIN)/python -m examples.demo_cluster

soak: $(STAMP) ## try each fault as often as docs/reliability.md says: an hour and more
	$(BIN)/python -m pytest tests/faults --campaign

fuzz: $(STAMP) ## feed the server and its readers 200,000 cases of bad input: half an hour and more
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --only-binary atheris -c constraints.txt -e '.[fuzz]' \
	  || echo "note: there is no Atheris for this Python or machine; Hypothesis alone makes the cases"
	$(BIN)/python -m tests.fuzz

bench: $(STAMP) ## measure speed and memory: half an hour, then some hours for what is long; LONG= leaves that out
	@for name in $(BENCHMARKS) $(LONG); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-quick: $(STAMP) ## the same with short texts and small models, in minutes: to see that all of it works
	@for name in $(BENCHMARKS) $(LONG); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

wheel: $(STAMP) ## build the wheel into dist/
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
