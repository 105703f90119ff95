#!/usr/bin/env bash
# Runs a fuzz target of tests/fuzz, or both: scripts/fuzz.sh [TARGET] [SECONDS]. TARGET is connection (what a peer
# sends), segment (the files of a data directory) or all; SECONDS (60) is for each. It needs cargo-fuzz (cargo install cargo-fuzz) and
# the stable compiler. What it learns is kept in target/fuzz, and so is the input of a crash, with the command to repeat
# it printed. Exit code: that of the fuzzer, 0 when it found nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: scripts/fuzz.sh [connection|segment|all] [SECONDS]" >&2
    exit 2
}

target=${1:-all}
seconds=${2:-60}
case $target in
    connection | segment) targets=("$target") ;;
    all) targets=(connection segment) ;;
    *) usage ;;
esac
[[ $seconds =~ ^[1-9][0-9]*$ ]] || usage
command -v cargo-fuzz >/dev/null || { echo "there is no cargo-fuzz: cargo install cargo-fuzz" >&2; exit 2; }

# Nothing here needs a nightly compiler: no sanitizer is used, the code is safe Rust.
build=(--fuzz-dir tests/fuzz --target-dir target/fuzz/build --sanitizer none)
# The tests know what to start from, and run some of it.
ORLOP_WRITE_SEEDS=$PWD/target/fuzz/corpus cargo test --quiet --locked --test it fuzz::
for target in "${targets[@]}"; do
    learnt=target/fuzz/corpus/$target
    crashes=target/fuzz/crashes/$target/
    mkdir -p "$learnt" "$crashes"
    cargo fuzz run "${build[@]}" "$target" "$learnt" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=1024 \
        -timeout=20 -artifact_prefix="$crashes" -print_final_stats=1
done
