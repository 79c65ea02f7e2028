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

.PHONY: demo test test-rust test-python check format wheel bench-env bench-codec clean

demo: .stamps/installed
	$(BIN)/actstore-cli demo

test: test-rust test-python

test-rust:
	cargo test --workspace --exclude actstore-python --quiet

test-python: .stamps/installed
	$(BIN)/pytest -q

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

bench-env: .stamps/bench-environment

# BENCH: more options of benches/codec.py.
bench-codec: target/bench-streams/index.json .stamps/installed
	cargo build --release --quiet --package actstore --example codec_rounds
	$(BENCH_VENV)/bin/python benches/codec.py $(BENCH)

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

# What is measured against lives in an environment of its own.
.stamps/bench-environment: benches/requirements.txt | .stamps/environment
	$(UV) venv --quiet --clear --python $(BIN)/python $(BENCH_VENV)
	VIRTUAL_ENV=$(CURDIR)/$(BENCH_VENV) $(UV) pip install --quiet --compile-bytecode -r benches/requirements.txt
	@mkdir -p .stamps && touch $@

target/bench-streams/index.json: benches/streams.py .stamps/bench-environment | .stamps/installed
	$(BENCH_VENV)/bin/python benches/streams.py
