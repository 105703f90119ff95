#!/usr/bin/env bash
# Measures what hostile clients do to a server, by the ignored tests of tests/it/hostile: how many attacks, whether
# anything panicked, peak memory and its bound, the 99th percentiles of a client that behaves, alone and meanwhile; then
# sees that peers which stand still are cut off. scripts/figures-hostile.sh [SECONDS]: the length of each of the two measurements (10).
# The server has CPU 0, the clients share CPU 1, where the one that behaves goes first: needs two CPUs, taskset and renice.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: scripts/figures-hostile.sh [SECONDS]" >&2
    exit 2
fi
ORLOP_SECONDS=$seconds cargo test --release --locked --test it hostile:: -- --ignored --test-threads=1
