#!/bin/sh
# Installs httpwg, h2spec's cases in Rust, below target/ from crates.io. Safe to run from several tests at once.
set -eu
version=0.2.5
target=$(cd "$(dirname "$0")/../.." && pwd)/target/httpwg
mkdir -p "$target"
exec 9>"$target/lock"
flock 9

if [ "$(cat "$target/installed" 2>/dev/null)" != "$version" ]; then
  CARGO_TARGET_DIR=$target/build cargo install --quiet --debug --force --locked --version "=$version" --root "$target" httpwg-cli
  rm -rf "$target/build"
  echo "$version" >"$target/installed"
fi
