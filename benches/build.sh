#!/usr/bin/env bash
# Builds what is measured: the gateway and benches/peers, into a folder.
# Usage: benches/build.sh FOLDER
#
# Both are built twice, where the tools of rustc's own LLVM can be had: first so that they count what runs, then, after a short
# run of the benchmark, with what was counted (profile-guided optimization). Gateway and bare Pingora get the same treatment.
# POSTERN_PLAIN=1 leaves that out.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/profile")
cargo=${CARGO:-cargo}

# Of rustup's component llvm-tools, or of Debian: an older one cannot read what this compiler writes.
profdata() {
  local sysroot
  sysroot=$(rustc --print sysroot)
  for candidate in "$sysroot/lib/rustlib/$host/bin/llvm-profdata" "/usr/lib/llvm-$llvm/bin/llvm-profdata"; do
    if [ -x "$candidate" ]; then echo "$candidate" && return; fi
  done
  return 1
}

# programs FLAGS FOLDER: the programs, built with these flags of rustc.
programs() {
  local to=$2
  # With --target the flags are for the programs alone, and not for what runs while they are built.
  RUSTFLAGS=$1 $cargo build --release --locked --target "$host" --target-dir "$work/$to"
  RUSTFLAGS=$1 $cargo build --release --locked --target "$host" --target-dir "$work/$to-peers" --manifest-path benches/peers/Cargo.toml
}

# taken FROM: what was built there is what is measured.
taken() {
  mkdir -p "$folder"
  find "$work/$1/$host/release" "$work/$1-peers/$host/release" -maxdepth 1 -type f -executable -exec cp -t "$folder" {} +
}

if [ -n "${POSTERN_PLAIN:-}" ] || ! tool=$(profdata); then
  echo "built without a profile: POSTERN_PLAIN is set, or there is no llvm-profdata of LLVM $llvm"
  programs "" plain
  taken plain
  exit
fi

# Each program writes down what it counted when it ends.
programs "-Cprofile-generate=$work/raw" counting
rm -rf "$work/raw"
taken counting
LLVM_PROFILE_FILE="$work/raw/%m-%p.profraw" BENCH_ROUNDS=1 BENCH_SECONDS=3 python3 benches/run.py --full \
  --only postern,postern-redis,postern-log,bare,main,1500,method,rules,managed,tls,h2,sse,first "$folder/postern" "$folder" >"$work/training.log"
"$tool" merge -o "$work/warm.profdata" "$work"/raw/*.profraw
programs "-Cprofile-use=$work/warm.profdata" profiled
taken profiled
