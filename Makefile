# Each target runs on a fresh clone by itself.

export PATH := $(PATH):/usr/sbin:/sbin
BIN := .venv/bin
FASTPATH := fastpath/target/release/overmesh-fastpath
RUST := --manifest-path fastpath/Cargo.toml

.PHONY: help setup demo test test-guest test-faults soak fuzz check bench bench-micro bench-control bench-host wheels clean

help:
	@echo "make demo    three hosts, one mesh, on this machine, in a minute (HOLD=1 leaves it up)"
	@echo "make test    all tests"
	@echo "make test-guest  those that need a guest with another kernel, alone"
	@echo "make test-faults  a mesh in use while all around it fails, for MINUTES=3 (SEED=7 does it again)"
	@echo "make soak    sealed traffic for MINUTES=60: loss, memory, sessions"
	@echo "make fuzz    every fuzz target for MINUTES=30, one after the other"
	@echo "make check   formatting, lints, types, generated code"
	@echo "make bench   side by side with its peers (QUICK=1: the gates alone, in 10 minutes)"
	@echo "make bench-micro  sealing, opening, lookup, cutting, merging: each by itself"
	@echo "make bench-control  simulated agents on real controllers and etcd: N=100, 1000, 10000 (or N=…)"
	@echo "make bench-host  what 10,000 peers cost a host"
	@echo "make wheels  what installs on a host, in dist/"
	@echo "make setup   what the others need, by itself"
	@echo "make clean   back to a fresh clone"

setup: .venv/ready $(FASTPATH)
	@scripts/setup test

demo: .venv/ready $(FASTPATH)
	@$(BIN)/python -m tests.netns.demo

test: setup
	cargo test --locked --quiet $(RUST)
	$(BIN)/python -m pytest

test-guest: setup
	$(BIN)/python -m pytest -v tests/interop/test_kernel_geneve.py tests/interop/test_kernel_wireguard.py

test-faults: setup
	@$(BIN)/python -m tests.faults --minutes $(or $(MINUTES),3) $(if $(SEED),--seed $(SEED))

soak: setup
	@$(BIN)/python -m tests.interop.soak --minutes $(or $(MINUTES),60)

fuzz:
	@fastpath/fuzz/run $(or $(MINUTES),30)

check: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cargo fmt --all --check $(RUST)
	cargo clippy --locked --quiet --all-targets $(RUST) -- -D warnings
	scripts/generate --check
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

bench: .venv/ready $(FASTPATH)
	@scripts/setup bench
	@benchmarks/install $(if $(QUICK),gate,all)
	cargo build --locked --release --quiet $(RUST) -p overmesh-io --example paced
	$(BIN)/python -m benchmarks.overlay

bench-micro:
	cargo bench --locked --quiet $(RUST) -p overmesh-core --features ipsec-mb --bench packets -- --quiet

bench-control: .venv/ready
	@scripts/setup test
	$(BIN)/python -m benchmarks.control $(if $(N),--agents $(N))

bench-host: .venv/ready $(FASTPATH)
	$(BIN)/python -m benchmarks.host

wheels: .venv/ready
	$(BIN)/python -m build --no-isolation --wheel --outdir dist .
	$(BIN)/maturin build --release --locked --manifest-path fastpath/daemon/Cargo.toml --out dist

clean:
	rm -rf .venv .cache dist fastpath/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: requirements/dev.txt pyproject.toml scripts/python
	@scripts/setup run
	rm -rf .venv
	$$(scripts/python) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(FASTPATH): $(shell find fastpath -name target -prune -o \( -name '*.rs' -o -name '*.c' -o -name 'Cargo.*' \) -print)
	cargo build --locked --release --quiet $(RUST)
	@touch $@
