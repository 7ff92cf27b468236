#!/usr/bin/env bash
# Installs, upgrades, removes and purges the package: in a directory of its own, and, where there may be one, on a machine of its own,
# whose systemd has the service. Usage: tests/package.sh FILE.deb
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

deb=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

fail() { echo "package: $*" >&2; exit 1; }
has() { [ -e "$root/$1" ] || fail "$1 is missing $2"; }
lacks() { [ ! -e "$root/$1" ] || fail "$1 is still there $2"; }
# What it depends on is in no directory of ours; its scripts run here, and are told of the directory.
run_dpkg() {
  dpkg --root="$root" --force-script-chrootless --force-depends --force-not-root --force-confold --log=/dev/null "$@" >"$root/log" 2>&1 ||
    { cat "$root/log" >&2; fail "dpkg $*"; }
}

mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
: >"$root/var/lib/dpkg/status"

run_dpkg --install "$deb"
for file in usr/bin/postern etc/postern/postern.yaml usr/share/doc/postern/README.md usr/share/doc/postern/copyright; do
  has "$file" "after the installation"
done
unit=$(find "$root" -name postern.service | head -n 1)
[ -n "$unit" ] || fail "the unit is missing"
[ "$(stat -c %a "$root/usr/bin/postern")" = 755 ] || fail "the mode of the program"
"$root/usr/bin/postern" --version >/dev/null || fail "the program does not run"
grep -q '^  data_dir: /var/lib/postern$' "$root/etc/postern/postern.yaml" || fail "the data directory is not the unit's"
dpkg --root="$root" --status postern | grep -q '^ /etc/postern/postern.yaml ' || fail "the configuration is no conffile"
if command -v systemd-analyze >/dev/null; then
  sed "s#/usr/bin/postern#$root/usr/bin/postern#; s#file:/usr#file:$root/usr#" "$unit" >"$root/postern.service"
  systemd-analyze verify "$root/postern.service" || fail "systemd-analyze verify"
fi

mkdir -p "$root/var/lib/private/postern"
ln -sf private/postern "$root/var/lib/postern"
echo precious >"$root/var/lib/private/postern/postern.redb"
echo '# edited' >>"$root/etc/postern/postern.yaml"
run_dpkg --install "$deb"
grep -q '^# edited$' "$root/etc/postern/postern.yaml" || fail "an upgrade has replaced the configuration"

run_dpkg --remove postern
lacks usr/bin/postern "after the removal"
grep -q '^# edited$' "$root/etc/postern/postern.yaml" || fail "a removal has taken the configuration"
grep -q precious "$root/var/lib/private/postern/postern.redb" || fail "a removal has taken what users have"

run_dpkg --purge postern
lacks etc/postern/postern.yaml "after the purge"
lacks var/lib/private/postern "after the purge"
echo "package: installed, upgraded, removed and purged"

# The same where a systemd is: what the package's scripts ask of it is done.
on_a_machine() {
  set -eu
  fail() { echo "package, under systemd: $*" >&2; journalctl --no-pager --unit=postern >&2; exit 1; }
  run_dpkg() { dpkg --force-depends "$@" >/run/log.dpkg 2>&1 || { cat /run/log.dpkg >&2; fail "dpkg $*"; }; }
  main_process() { systemctl show --value --property=MainPID postern; }
  cat >/run/postern.deb
  run_dpkg --install /run/postern.deb
  [ "$(systemctl is-active postern)" = inactive ] || fail "it runs before it is configured"
  cat >/etc/postern/postern.yaml <<'CONFIG'
server: {public_url: "http://127.0.0.1:1", listen: ["127.0.0.1:0"], admin: "127.0.0.1:0", data_dir: /var/lib/postern}
login: {local: {users: [{username: alice, password_hash: "$argon2id$v=19$m=19456,t=2,p=1$8ZCVR4QDG/0C4YXMmXc5eg$m/LlQtKDdhxEFEjjkAiV8iTCvwp/xu4N6O8sWaElWH8"}]}}
routes: [{name: demo, path: /demo, upstream: {url: "https://mcp.example.com/mcp"}, credential: {kind: none}}]
CONFIG
  systemctl start postern || fail "it does not start"
  before=$(main_process)
  run_dpkg --install /run/postern.deb
  [ "$(systemctl is-active postern)" = active ] || fail "an upgrade has stopped it"
  [ "$(main_process)" != "$before" ] || fail "after an upgrade the old program serves: $(cat /run/log.dpkg)"
  [ "$(readlink "/proc/$(main_process)/exe")" = /usr/bin/postern ] || fail "another program serves"
  run_dpkg --remove postern
  [ "$(systemctl is-active postern)" = inactive ] || fail "it runs after its removal"
  [ -e /var/lib/private/postern/postern.redb ] || fail "a removal has taken what users have"
  run_dpkg --purge postern
  [ ! -e /var/lib/private/postern ] || fail "a purge has left what users had"
  systemctl list-unit-files postern.service | grep -q '^0 unit' || fail "the unit is still there"
}
code=0
"$(dirname "$0")/setup/machine.sh" bash -c "$(declare -f on_a_machine); on_a_machine" <"$deb" >/dev/null || code=$?
case $code in
  0) echo "package: started, upgraded while it served, stopped and removed by systemd" ;;
  77) echo "package: under systemd skipped" ;;
  *) exit "$code" ;;
esac
