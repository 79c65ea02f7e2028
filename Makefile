# Every command of the project; CI calls only these.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
UV := $(BIN)/uv
# maturin and cargo build pyo3 with other settings: in one folder they would rebuild it at every switch.
MATURIN := VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH=$(CURDIR)/$(BIN):$$PATH CARGO_TARGET_DIR=target/python $(BIN)/maturin
RUST_SOURCES := $(shell find rust/core/src rust/python/src -name '*.rs') Cargo.toml Cargo.lock rust/core/Cargo.toml rust/python/Cargo.toml
PYTHON_SOURCES := python tests demo_model benches
BENCH_VENV := .venv-bench

.PHONY: demo test test-rust test-python test-long check format wheel bench bench-quick bench-full bench-capture bench-env bench-codec bench-old-lmdb fuzz clean

demo: .stamps/installed
	$(BIN)/actstore-cli demo

test: test-rust test-python

test-rust:
	cargo test --workspace --exclude actstore-python --quiet

test-python: .stamps/installed
	$(BIN)/pytest -q

# What takes minutes; `test` has a small version of it.
test-long: .stamps/installed
	$(BIN)/pytest -q -m long

check: .stamps/installed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/pyright
	MYPYPATH=python $(BIN)/stubtest actstore._core

format: .stamps/environment
	cargo fmt --all
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)

DIST ?= dist

wheel: .stamps/environment
	$(MATURIN) build --release --out $(DIST)

bench-env: .stamps/bench-installed

# Against rivals. bench: bfloat16, 20 minutes at most; bench-quick: two; bench-full: every dtype, without bound, goes on
# where it was stopped. BENCH: more options of benches/bench.py. Leave the machine alone meanwhile.
bench bench-quick bench-full: target/bench-entries/embedded.json .stamps/bench-installed
	$(BENCH_VENV)/bin/python benches/bench.py $(patsubst bench-%,%,$@) $(BENCH)

# BENCH: more options of benches/capture.py.
bench-capture: target/bench-entries/embedded.json .stamps/bench-installed
	$(BENCH_VENV)/bin/python benches/capture.py $(BENCH)

# BENCH: more options of benches/codec.py.
bench-codec: target/bench-streams/index.json .stamps/installed
	cargo build --release --quiet --package actstore --example codec_rounds
	$(BENCH_VENV)/bin/python benches/codec.py $(BENCH)

# Old LMDB logs, against py-lmdb and pickle. BENCH: more options of benches/old_lmdb.py.
bench-old-lmdb: .stamps/installed
	$(BIN)/python benches/old_lmdb.py $(BENCH)

# Each target for FUZZ_SECONDS. Sanitizers are unstable, but stable compilers have them. What is new goes to
# target/fuzz/corpus; `cargo fuzz cmin` picks what rust/fuzz/corpus keeps, which `test` runs.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(basename $(notdir $(wildcard rust/fuzz/fuzz_targets/*.rs)))
FUZZ_OPTIONS := --fuzz-dir rust/fuzz --target-dir target/fuzz --no-trace-compares
FUZZ_LIMITS := -max_len=12288 -malloc_limit_mb=64 -timeout=10

fuzz:
	@command -v cargo-fuzz > /dev/null || cargo install cargo-fuzz --locked --quiet
	RUSTC_BOOTSTRAP=1 cargo fuzz build $(FUZZ_OPTIONS)
	@set -e; for target in $(FUZZ_TARGETS); do \
		new=target/fuzz/corpus/$$target; mkdir -p $$new; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $(FUZZ_OPTIONS) $$target $$new rust/fuzz/corpus/$$target -- \
			$(FUZZ_LIMITS) -max_total_time=$(FUZZ_SECONDS) > $$new.log 2>&1 || { tail -n 80 $$new.log; exit 1; }; \
		echo "$$target: $$(sed -n 's/^Done //p' $$new.log)"; \
	done

clean:
	rm -rf .stamps $(VENV) $(BENCH_VENV) dist target

# The environment without the package: what to build and test it with.
.stamps/environment: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --compile-bytecode -r pyproject.toml --extra dev
	@mkdir -p .stamps && touch $@

# The package, editable: Python changes need no new installation.
.stamps/installed: .stamps/environment $(RUST_SOURCES)
	$(MATURIN) develop --release --uv --quiet
	@touch $@

# What is measured against lives in an environment of its own. A rival that cannot be installed is left out.
BENCH_INSTALL := VIRTUAL_ENV=$(CURDIR)/$(BENCH_VENV) $(UV) pip install --quiet --compile-bytecode

.stamps/bench-environment: benches/requirements.txt benches/rivals/requirements.txt | .stamps/environment
	$(UV) venv --quiet --clear --python $(BIN)/python $(BENCH_VENV)
	$(BENCH_INSTALL) -r benches/requirements.txt
	$(BENCH_INSTALL) -r benches/rivals/requirements.txt || grep -v '^#' benches/rivals/requirements.txt | \
		while read -r rival; do $(BENCH_INSTALL) "$$rival" || echo "left out: $$rival"; done
	@mkdir -p .stamps && touch $@

# The package beside its rivals, as its users have it: from a wheel.
.stamps/bench-installed: .stamps/bench-environment $(RUST_SOURCES) $(shell find python -name '*.py') pyproject.toml
	rm -rf target/bench-wheel
	$(MATURIN) build --release --quiet --out target/bench-wheel
	$(BENCH_INSTALL) --no-deps --reinstall target/bench-wheel/*.whl
	@touch $@

target/bench-streams/index.json: benches/streams.py .stamps/bench-environment | .stamps/bench-installed
	$(BENCH_VENV)/bin/python benches/streams.py

target/bench-entries/embedded.json: benches/entries.py benches/streams.py .stamps/bench-environment | .stamps/bench-installed
	$(BENCH_VENV)/bin/python benches/entries.py
