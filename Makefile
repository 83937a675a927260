# What there is to run. Rust is all that must be there: scripts/setup installs the rest.

ESSAIM_CACHE ?= $(HOME)/.cache/essaim
CARGO_TARGET_DIR ?= $(ESSAIM_CACHE)/target
export ESSAIM_CACHE CARGO_TARGET_DIR

cargo_deny := $(ESSAIM_CACHE)/tools/bin/cargo-deny

.PHONY: demo examples test test-containers pages chaos fuzz soak lint bench services services-stop setup

# The demo; ARGS are passed on to it.
demo:
	@scripts/setup demo
	@[ -x "$(CARGO_TARGET_DIR)/debug/essaim" ] || echo "Building Essaim: minutes, the first time only."
	@cargo run --quiet --bin essaim -- demo $(ARGS)

# The pipelines of examples/, from nothing to their plots, a line each; ARGS name some: `make examples ARGS="sales weather"`.
examples: ARGS ?= $(patsubst examples/%/run,%,$(wildcard examples/*/run))
examples: services
	@cargo build --quiet --locked --bin essaim
	@for example in $(ARGS); do ESSAIM_BIN="$(CARGO_TARGET_DIR)/debug/essaim" examples/$$example/run --quiet || exit; done

# Every test, against a private PostgreSQL and Kafka that stay up for the next time.
# ARGS are cargo test's: `make test ARGS="-p essaim-common decimal"`.
test: services pages
	@scripts/test $(ARGS)

# The charts of the status pages, for `cargo build` to embed; a build without them has pages that show figures alone.
pages: web/dist/charts.js

web/dist/charts.js: web/charts/charts.js web/charts/charts.css web/package-lock.json
	@scripts/setup pages
	@cd web && npm run --silent build

# Essaim in containers, as docker/compose.yaml runs it, while they are killed, cut off, restarted and stopped. Installs docker
# and starts its daemon where there is none; the first time it makes or pulls the images, which takes minutes.
test-containers: setup pages
	@cargo build --quiet --locked --bin essaim
	@tests/containers/run "$(CARGO_TARGET_DIR)/debug/essaim"

# A loaded streaming job while its workers, master, broker, database and connections die: each row is in each sink once.
# ROUNDS and SEED say how long and what goes wrong. `make test` runs 10 rounds of it.
chaos: setup
	@cargo build --quiet --locked --bin essaim
	@CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) cargo test --quiet --locked -p essaim-tests --test chaos -- --nocapture

# Random bytes, steered by coverage, into each decoder that reads from the network, for SECONDS each.
fuzz: SECONDS ?= 60
fuzz:
	@scripts/fuzz $(SECONDS) $(ARGS)

# Format, lints, and what may come into the build (deny.toml). Advisories are not checked: their
# database is a git repository of its own, and a build must not fail because that cannot be reached.
lint: setup $(cargo_deny)
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(cargo_deny) --locked --log-level error check --hide-inclusion-graph bans licenses sources

# Built once into the cache: 3.5 minutes of processor time, that is two minutes on two cores.
# It has a target folder of its own (cargo's temporary one) that goes when it is built.
$(cargo_deny):
	@echo "Building cargo-deny: minutes, the first time only."
	@env -u CARGO_TARGET_DIR cargo install --quiet --locked --version 0.20.2 --root "$(ESSAIM_CACHE)/tools" cargo-deny

# What Essaim can do as a part of what the machine can do, against the same servers as the tests: minutes, and the first
# time the optimised build. Nothing else should run meanwhile. ARGS name the benches: `make bench ARGS="postgres idle"`.
bench: ARGS ?= postgres kafka wide idle decoders stream latency groups
bench: services
	@cargo build --quiet --release -p essaim -p essaim-bench
	@eval "$$(scripts/services env)"; for bench in $(ARGS); do case $$bench in \
	  decoders) cargo bench --quiet -p essaim -p essaim-bench --bench decoders ;; \
	  *) "$(CARGO_TARGET_DIR)/release/$$bench" ;; \
	esac || exit; done

# Memory, state and lag of a streaming job under a steady load, over ten minutes; ARGS are other minutes: `make soak ARGS=60`.
soak: services
	@cargo build --quiet --release -p essaim -p essaim-bench
	@eval "$$(scripts/services env)"; "$(CARGO_TARGET_DIR)/release/soak" $(ARGS)

services: setup
	@scripts/services start

services-stop:
	@scripts/services stop

setup:
	@scripts/setup
