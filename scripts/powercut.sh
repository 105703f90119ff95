#!/usr/bin/env bash
# Power cuts on a real file system: a server on ext4 on a device whose every write and flush is logged takes a load and
# several kills; then the device is rebuilt as power cuts would have left it (up to a flush, and any part of what was
# written after it), mounted, a server started on it, and every acknowledgement that came before the cut is looked for.
#
#   scripts/powercut.sh [--points N] [--writes N] [--seed N] [--required]
#
#   --points N    power cuts (default 1000)
#   --writes N    acknowledged writes before them (default 8000)
#   --seed N      repeats where the cuts are (the record of another run differs: replay it as a failure says)
#   --required    fail where this cannot run, instead of saying SKIPPED
#
# Needs root, loop devices, FUSE, and qemu-storage-daemon with FUSE exports (Debian: qemu-system-common or qemu-utils).
# ORLOPD names another server binary to test. Exit codes: 0 nothing lost (or skipped), 1 something was, 2 wrong usage,
# 3 this machine refused something. What failed is kept under target/.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
points=1000 writes=8000 seed='' required=''

say() { printf 'powercut: %s\n' "$*" >&2; }
fail() { say "$1"; exit "${2:-3}"; }
skip() {
    [[ -z $required ]] || fail "cannot run here, and --required was given: $*"
    printf '\n*** SKIPPED scripts/powercut.sh: %s\n\n' "$*" >&2
    exit 0
}
number() {
    [[ ${2:-} =~ ^[0-9]{1,18}$ ]] || fail "$1 needs a number, not '${2:-}'" 2
    printf '%s' "$2"
}

while (($# > 0)); do
    case $1 in
        --points) points=$(number "$1" "${2:-}"); shift 2 ;;
        --writes) writes=$(number "$1" "${2:-}"); shift 2 ;;
        --seed) seed=$(number "$1" "${2:-}"); shift 2 ;;
        --required) required=1; shift ;;
        --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        *) fail "unknown argument '$1'; see --help" 2 ;;
    esac
done

[[ $(id -u) -eq 0 ]] || skip "needs root, for loop devices and mounts"
for command in qemu-storage-daemon mkfs.ext4 losetup mount umount; do
    command -v "$command" >/dev/null || skip "needs $command"
done
[[ -c /dev/fuse ]] || skip "needs FUSE (/dev/fuse)"
losetup --find >/dev/null 2>&1 || skip "no loop device is free"
seed=${seed:-$((RANDOM << 30 | RANDOM << 15 | RANDOM))}

cargo build --release --package orlop --package orlop-bench
orlopd=$(realpath "${ORLOPD:-$target/release/orlopd}")
bench=$target/release/orlop-bench

# Everything lives in memory: the log has tens of thousands of small writes.
scratch=$(mktemp -d)
loop='' child='' daemon=''
end_daemon() {
    [[ -n $daemon ]] || return 0
    kill -TERM "$daemon" 2>/dev/null || true
    tail --pid="$daemon" -f /dev/null
    daemon=''
}
# The kernel lets go of the files of a killed process with io_uring some time after its end.
unmount() {
    local try
    for try in {1..100}; do
        umount "$1" 2>/dev/null && return 0
        sleep 0.1
    done
    say "cannot unmount $1 ($try tries)"
    return 1
}
# Called by the trap below.
# shellcheck disable=SC2317
clean_up() {
    local code=$?
    set +e
    cd /
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null
        wait "$child" 2>/dev/null
    fi
    for directory in "$scratch/mounted" "$scratch/fs"; do
        ! mountpoint -q "$directory" || unmount "$directory" || umount --lazy "$directory"
    done
    [[ -z $loop ]] || losetup --detach "$loop"
    end_daemon
    ! mountpoint -q "$scratch/device" || umount --lazy "$scratch/device"
    ! mountpoint -q "$scratch" || unmount "$scratch" || umount --lazy "$scratch"
    rmdir "$scratch"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, because a trap waits for a command in the foreground to end. The server dies with its parent.
run() {
    local code=0
    "$@" &
    child=$!
    wait "$child" || code=$?
    child=''
    return "$code"
}

mount -t tmpfs -o size=6g,mode=700 powercut "$scratch"
cd "$scratch"
truncate --size 128M disk.img
truncate --size 4G log.img
mkdir fs mounted
touch device
qemu-storage-daemon --daemonize --pidfile "$scratch/daemon.pid" \
    --blockdev "driver=file,node-name=disk,filename=$scratch/disk.img" \
    --blockdev "driver=file,node-name=log,filename=$scratch/log.img" \
    --blockdev driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512 \
    --export "type=fuse,id=device,node-name=logged,mountpoint=$scratch/device,writable=on" ||
    skip "qemu-storage-daemon does not export a logged device over FUSE"
daemon=$(<"$scratch/daemon.pid")
# Not --direct-io: requests would overlap, and then QEMU's log is not always what the device got.
loop=$(losetup --find --show "$scratch/device")
# Blocks as on every larger device: on smaller ones a frame may straddle two pages, and is written in two parts.
mkfs.ext4 -q -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$loop"
mount "$loop" fs

say "loading a server: $writes writes, several kills (seed $seed)"
started=$SECONDS
run "$bench" power-cut record --log log.img --data fs/data --orlopd "$orlopd" --server-log server.log \
    --history history --writes "$writes" --seed "$seed" ||
    { tail -n 20 server.log >&2; fail "the load failed"; }
unmount fs
losetup --detach "$loop"
loop=''
end_daemon

say "cutting the power $points times"
replay=(power-cut replay --log log.img --disk disk.img --history history --orlopd "$orlopd" --points "$points" --seed "$seed")
code=0
run "$bench" "${replay[@]}" --work "$scratch" || code=$?
if ((code != 0)); then
    kept=$target/powercut-failed-$seed
    mkdir -p "$kept"
    for file in log.img disk.img history failed.img server.log; do
        [[ ! -e $file ]] || cp --sparse=always "$file" "$kept/"
    done
    say "FAILED (exit code $code); kept in $kept, to be replayed there with"
    say "  mkdir -p work && $bench ${replay[*]} --work work"
    exit "$code"
fi
say "nothing lost, in $((SECONDS - started)) s"
