#!/usr/bin/env bash
# Measures what hostile clients do to a server, by the ignored tests of tests/it/hostile: how many attacks, whether
# anything panicked, peak memory and its bound, the 99th percentiles of a client that behaves, alone and meanwhile; then
# sees that peers which stand still are cut off. scripts/figures-hostile.sh [SECONDS]: the length of each of the two measurements (10).
# The server has CPU 0, the clients share CPU 1, where the one that behaves goes first: needs two CPUs, taskset and chrt.
# Meanwhile tasks are not grouped by session (sysctl kernel.sched_autogroup_enabled), else the attackers on CPU 1 would hold up the
# kernel's workers, and commits with them: needs root, or 0 there already.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: scripts/figures-hostile.sh [SECONDS]" >&2
    exit 2
fi
cargo test --release --locked --test it --no-run
grouping=/proc/sys/kernel/sched_autogroup_enabled
if [[ -e $grouping && $(<$grouping) != 0 ]]; then
    if ! { echo 0 >$grouping; } 2>/dev/null; then
        echo "figures-hostile.sh: kernel.sched_autogroup_enabled is $(<$grouping): set it to 0, or run this as root" >&2
        exit 1
    fi
    trap 'echo 1 >$grouping' EXIT
fi
ORLOP_SECONDS=$seconds cargo test --release --locked --test it hostile:: -- --ignored --test-threads=1
