#!/bin/sh
# Installs what the interop cases need, where it is missing: the Node packages beside this file, and the Python
# SDK and FastMCP in a virtual environment below target/. Safe to run from several tests at once.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target
venv=$target/interop-venv
mkdir -p "$target"
exec 9>"$target/interop.lock"
flock 9

if ! cmp -s "$here/package-lock.json" "$here/node_modules/.installed"; then
  (cd "$here" && npm ci --ignore-scripts --no-audit --no-fund)
  cp "$here/package-lock.json" "$here/node_modules/.installed"
fi
if ! cmp -s "$here/requirements.txt" "$venv/.installed"; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/.installed"
fi
