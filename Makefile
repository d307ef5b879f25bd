# Every target does its own set-up, in .venv. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
FUZZ_SECONDS ?= 600
# The interpreter by version and place, as a file's name; nothing if there is none, which check-tools reports.
INTERPRETER := $(shell $(PYTHON) -c 'import os, re, sys; \
	print(re.sub(r"\W", "-", sys.version.split()[0] + os.path.realpath(sys.executable)))' 2>/dev/null)
ENVIRONMENT := $(STAMPS)/venv-$(INTERPRETER)
SOURCES := $(shell find src -name '*.rs') build.rs python/longconn/_longconn.pyi Cargo.toml Cargo.lock pyproject.toml
# A wheel's speed: benches and users see the same.
MATURIN := $(BIN)/maturin develop --release --quiet

.PHONY: help build notebooks pictures demo test test-pythons loom lint bench compare detect chaos conformance fuzz wheel sdist docs clean check-tools
.DELETE_ON_ERROR:

help:
	@echo 'make demo         who is told, when and why, if connections break'
	@echo 'make test         all tests, from the wheel; those on real networks need root'
	@echo 'make test-pythons the Python suite from the wheel on each CPython from 3.11 that is found, and a table'
	@echo 'make loom         what the native threads hand to each other, in every interleaving; part of make test'
	@echo 'make lint         formatting, clippy, ruff, mypy, stubtest'
	@echo 'make bench        speed against the stdlib and other libraries, as docs/speed.md shows it'
	@echo 'make compare      who is told, and when, by which library: a table and a figure; some minutes, needs root'
	@echo 'make detect       how long detection takes, 5 or 10 runs a case, with figures; needs root'
	@echo 'make chaos        what sessions survive, and docs/chaos.md; a quarter of an hour, needs root'
	@echo "make conformance  CPython's own tests with KeepaliveSocket in the place of socket.socket"
	@echo 'make fuzz         the decoder, sequences of operations, and TLS, FUZZ_SECONDS=600 each'
	@echo 'make notebooks    run examples/notebooks, and keep what comes; some two minutes'
	@echo "make pictures     the docs' pictures of terminals and a notebook, and their figures; needs root and chromium"
	@echo 'make docs         the documentation as a site, into site/'
	@echo 'make wheel        the abi3 wheel, audited, into dist/; MANYLINUX=2_17 for older systems'
	@echo 'make sdist        the source distribution, and a wheel built of it'
	@echo 'PYTHON=python3.13 make ...  with another interpreter'
	@echo 'TESTS="-k fork" make test   some of the Python tests, in words for pytest'
	@echo 'PYTHONS="python3.12 /opt/python/bin/python" make test-pythons  those'

check-tools:
	@command -v cargo >/dev/null || { echo 'longconn needs Rust 1.95 or later (cargo): https://rustup.rs' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'longconn needs a C compiler (cc): on Debian, apt install build-essential' >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo 'longconn needs Python 3.11 or later; $(PYTHON) was not found' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'longconn needs Python 3.11 or later; $(PYTHON) is older. Say PYTHON=python3.12 make ...' >&2; exit 1; }

# Another interpreter, another environment: the old one is thrown away.
$(ENVIRONMENT): | check-tools
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo 'longconn needs the module venv: on Debian, apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/%: $(ENVIRONMENT) pyproject.toml
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

$(STAMPS)/built: $(STAMPS)/build $(SOURCES)
	$(MATURIN)
	touch $@

build: $(STAMPS)/built

demo: build $(STAMPS)/demo
	$(BIN)/python examples/demo

test: wheel loom
	cargo test --quiet --no-default-features
	$(BIN)/python tests/python/run_wheel.py dist $(PYTHON) --pytest="$$TESTS"

test-pythons: wheel
	$(BIN)/python tests/python/run_wheel.py dist $(PYTHONS) --pytest="$$TESTS"

# In a directory of its own: the flag is every crate's, and would have all of them built anew each time.
loom: check-tools
	RUSTFLAGS='--cfg loom' cargo test --quiet --no-default-features --lib --target-dir $(or $(CARGO_TARGET_DIR),target)/loom models

lint: build $(STAMPS)/lint $(STAMPS)/test
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest longconn --allowlist tests/stubtest-allowlist.txt

bench: build $(STAMPS)/bench
	$(BIN)/python benches/bench.py
	$(BIN)/python benches/messages.py
	$(BIN)/python benches/asyncio_bench.py

compare: build $(STAMPS)/bench $(STAMPS)/test
	$(BIN)/python benches/compare.py

detect: build $(STAMPS)/test
	$(BIN)/python benches/detect.py

chaos: build $(STAMPS)/test
	$(BIN)/python benches/chaos.py

conformance: build $(STAMPS)/test
	$(BIN)/python tests/conformance/runner.py

# Without a sanitizer it needs no nightly compiler.
fuzz: check-tools
	@command -v cargo-fuzz >/dev/null || cargo install --locked --quiet --root target/tools cargo-fuzz
	set -e; for target in decoder operations tls; do PATH="$(CURDIR)/target/tools/bin:$$PATH" \
		cargo fuzz run -O -s none $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=60; done

# zig, which is on .venv's path, links for older C libraries than this machine's.
WHEEL := PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --release --out dist \
	$(if $(MANYLINUX),--zig --compatibility manylinux_$(MANYLINUX))

wheel: $(STAMPS)/build $(STAMPS)/wheel $(if $(MANYLINUX),$(STAMPS)/zig)
	rm -rf dist
	$(WHEEL)
	$(if $(FREE_THREADED),$(WHEEL) --interpreter $(FREE_THREADED))
	$(BIN)/python tests/python/audit_wheel.py dist/*.whl

# What is missing in it shows when a wheel is built of it.
sdist: $(STAMPS)/build
	mkdir -p dist
	rm -f dist/*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --release --sdist --out dist

notebooks: build $(STAMPS)/test
	set -e; for notebook in examples/notebooks/*.ipynb; do $(BIN)/python tests/python/run_notebook.py --save $$notebook; done

pictures: build $(STAMPS)/test $(STAMPS)/pictures
	$(BIN)/python benches/pictures.py
	$(BIN)/python benches/figures.py

# The site, into site/; a link that leads nowhere, or a public name that the API page hasn't got, fails.
docs: build $(STAMPS)/docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python tests/python/check_api_page.py site/api/index.html
	@grep -q 'lang="zh"' site/zh-CN/tutorial/*/index.html || { echo 'the Chinese pages call themselves English: theme/' >&2; exit 1; }

clean:
	rm -rf site $(VENV) .venvs target dist
