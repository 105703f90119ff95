#!/usr/bin/env bash
# Everything that a change has to pass, in one order, for people and for CI. Prints how long each step took and stops
# at the first one that fails. Needs cargo and gcc; shellcheck where it is installed (with CI=true it must be).
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

times=()
step() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name: $*" >&2
    "$@" || { echo "check.sh: $name failed" >&2; exit 1; }
    times+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

shell_scripts() {
    if ! command -v shellcheck >/dev/null; then
        [ "${CI:-}" != true ] || { echo "no shellcheck although CI=true" >&2; return 1; }
        echo "*** SKIPPED: no shellcheck here" >&2
        return 0
    fi
    shellcheck scripts/*.sh .ci/run
}

# What a program that only wants the client compiles: no runtime of the server, nothing of its storage.
client_tree_is_small() {
    local features tree
    for features in "" tokio; do
        tree=$(cargo tree --locked --no-default-features --features "$features" --edges normal --prefix none)
        if grep -E '^(glommio|io-uring|hashbrown|mimalloc|clap)' <<<"$tree"; then
            echo "the client alone (features: '$features') pulls in the crates above" >&2
            return 1
        fi
    done
}

step "shell scripts" shell_scripts
step "format" cargo fmt --all --check
step "lints" env CLIPPY_CONF_DIR="$PWD/scripts" \
    cargo clippy --locked --workspace --all-targets -- -D warnings -D clippy::too_many_lines
step "client alone" cargo check --locked --no-default-features
step "client with tokio" cargo check --locked --no-default-features --features tokio
step "client's dependencies" client_tree_is_small
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
# Builds the benchmarks as well: one of their tests runs the binary.
step "tests, bench build" cargo test --locked --workspace

echo "== all passed" >&2
printf '%s\n' "${times[@]}" >&2
