#!/usr/bin/env bash
# A machine within this one, to see what systemd makes of the unit: its first process is a systemd, its files are ours and copied as
# they are written, and nothing of it is left afterwards. It has our network, and no service but the journal.
# Usage: tests/setup/machine.sh COMMAND...   Boots it, prints "machine PID" (a number of ours; /proc/PID/root are its files), runs
# the command in it, ends it, and exits as the command did. Where no such machine may be had, exits with 77 and says why.
#        tests/setup/machine.sh in PID COMMAND...   Runs one more command in it.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

# Whatever the command does.
LONGEST=900

main() {
  [ "$(id -u)" -eq 0 ] || refused "only root may have one"
  local group
  group=$(cgroup2)/machine-$$
  ROOT=$(mktemp -d -t postern-machine.XXXXXX)
  mkdir "$group" 2>"$ROOT/said" || refused "no control group: $(<"$ROOT/said")"
  GROUP=$group
  (
    echo "$BASHPID" >"$GROUP/cgroup.procs"
    # It ends with whoever has started it, however that ends.
    exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount --cgroup --uts --ipc "$0" inside "$ROOT"
  ) >"$ROOT/said" 2>&1 </dev/null &
  MACHINE=$!
  until [ -e "$ROOT/pid" ]; do
    if ! kill -0 "$MACHINE" 2>/dev/null; then
      if [ -e "$ROOT/permitted" ]; then cat "$ROOT/said" >&2 && exit 1; fi
      refused "$(<"$ROOT/said")"
    fi
    sleep 0.05
  done
  local pid
  pid=$(<"$ROOT/pid")
  in_it "$pid" timeout 60 sh -c 'until systemctl is-system-running >/run/state 2>&1; do sleep 0.1; done' ||
    { in_it "$pid" sh -c 'cat /run/state; systemctl --no-pager --failed' >&2; exit 1; }
  echo "machine $pid"
  in_it "$pid" timeout --foreground -s KILL "$LONGEST" "$@"
}

# in_it PID COMMAND...
in_it() {
  local pid=$1
  shift
  nsenter --target "$pid" --mount --uts --ipc --cgroup --pid --root --wd env -i \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root "$@"
}

refused() {
  echo "no machine to be had: $*" >&2
  exit 77
}

# Our own group in the hierarchy that systemd wants.
cgroup2() {
  local at own
  at=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
  own=$(sed -n 's/^0:://p' /proc/self/cgroup)
  [ -n "$at" ] || refused "no control groups of version 2"
  echo "$at${own%/}"
}

end() {
  if [ -n "${MACHINE:-}" ]; then
    kill -KILL "$MACHINE" 2>/dev/null || true
    wait "$MACHINE" 2>/dev/null || true
  fi
  if [ -n "${GROUP:-}" ]; then
    # What was killed takes a moment to be gone.
    for _ in $(seq 100); do
      find "$GROUP" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.05
    done
  fi
  rm -rf "${ROOT:-}"
}

# As the first process in spaces of its own.
inside() {
  local root=$1 all pid name
  mount --make-rprivate /
  # Of our own /proc, which is still there.
  read -r pid _ </proc/self/stat
  mkdir "$root/disk"
  mount -t tmpfs -o mode=755 tmpfs "$root/disk"
  mkdir "$root/disk/written" "$root/disk/work" "$root/disk/all"
  all=$root/disk/all
  mount -t overlay -o "lowerdir=/,upperdir=$root/disk/written,workdir=$root/disk/work" overlay "$all"
  mount -t proc proc "$all/proc"
  mount -t sysfs -o ro sysfs "$all/sys"
  mount -t cgroup2 cgroup2 "$all/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$all/run"
  mount -t tmpfs -o mode=1777 tmpfs "$all/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$all/dev"
  for name in null zero full random urandom tty; do
    : >"$all/dev/$name"
    mount --bind "/dev/$name" "$all/dev/$name"
  done
  mkdir "$all/dev/pts" "$all/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$all/dev/pts"
  ln -s pts/ptmx "$all/dev/ptmx"
  mount -t tmpfs -o mode=1777 tmpfs "$all/dev/shm"
  # The kernel is not its to set.
  for name in sys sysrq-trigger irq bus; do
    if [ -e "$all/proc/$name" ]; then
      mount --bind "$all/proc/$name" "$all/proc/$name"
      mount -o remount,bind,ro "$all/proc/$name"
    fi
  done
  # From here on it is no question of what is permitted.
  : >"$root/permitted"
  local units=$all/usr/lib/systemd/system
  find "$units" -mindepth 1 -maxdepth 1 ! -name '*.target' ! -name '*.slice' \
    ! -name 'systemd-journald.*' ! -name systemd-journald-dev-log.socket -exec rm -rf {} +
  rm -rf "$all/etc/systemd" "$all/usr/lib/systemd/system-generators" "$all/var/log/journal" "$all/etc/machine-id"
  # Where systemd is not the first process, packages are told to start and stop nothing.
  rm -f "$all/usr/sbin/policy-rc.d"
  mkdir -p "$all/etc/systemd/system" "$units/sysinit.target.wants"
  ln -s ../systemd-journald.service "$units/sysinit.target.wants/"
  tr -d - </proc/sys/kernel/random/uuid >"$all/etc/machine-id"
  echo "$pid" >"$root/pid.new"
  mv "$root/pid.new" "$root/pid"
  # Its own from the root on: whoever looks from within has nothing else.
  cd "$all"
  mkdir run/before
  pivot_root . run/before
  umount -l /run/before
  rmdir /run/before
  exec env -i container=machine PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    chroot / /lib/systemd/systemd --system --unit=multi-user.target --show-status=no <&- >/dev/null 2>&1
}

case "${1:-} $$" in
  "inside 1") inside "$2" ;;
  "in "*) shift && in_it "$@" ;;
  *)
    trap end EXIT
    main "$@"
    ;;
esac
