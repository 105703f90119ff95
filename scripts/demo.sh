#!/usr/bin/env bash
# The demonstration: builds everything, starts a server on an empty directory, lets 10 clients write, read and read by
# prefix for 30 s while every answer is checked, reads every acknowledged write back, prints what the server counted,
# stops it, and checks that the files hold every write that was acknowledged. Exit code 0 only if no answer was wrong, the
# server stopped cleanly and nothing is missing.
#
#   scripts/demo.sh                    DEMO_SECONDS=5 scripts/demo.sh
#
# Everything that it makes lies in a new directory under target/ (the file system must take O_DIRECT, which tmpfs on
# older kernels does not) and is removed at the end, also after Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${DEMO_SECONDS:-30}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

say() { printf 'demo: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

cargo build --release --package orlop --package orlop-bench
PATH=$target/release:$PATH

scratch=$(mktemp -d "$target/demo.XXXXXX")
server='' bench=''
# Called by the trap below.
# shellcheck disable=SC2317
clean_up() {
    for process in $bench $server; do
        kill -TERM "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The server's standard output is a pipe that this script reads: its only line says where it serves.
mkfifo "$scratch/ready"
orlopd --data "$scratch/data" --listen 127.0.0.1:0 >"$scratch/ready" 2>"$scratch/server.log" &
server=$!
exec 3<"$scratch/ready"
if ! read -r -t 60 -u 3 word address rest || [[ $word != ready: ]]; then
    cat "$scratch/server.log" >&2
    fail "the server did not say that it is ready"
fi
say "server $server is ready on $address (shards: $rest); loading it for $seconds s"

# In the background, because a trap waits for a command in the foreground to end.
orlop-bench load --server "$address" --clients 10 --duration "$seconds" --warm-up 0 --mix 45:45:10 \
    --keys 20000 --value-size 512 --preload --verify --ack-log "$scratch/acks" &
bench=$!
wait "$bench"
bench=''

stat=$(orlop --server "$address" stat --json | tr -d '\n' | sed 's/"shards": *\[[^]]*\]//')
number() {
    local value
    value=$(sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" <<<"$stat")
    [[ -n $value ]] || fail "stat has no field $1: $stat"
    printf '%s' "$value"
}
started=$(number started_at_unix_ms)
sets=$(number sets)
gets=$(number gets)
prefixes=$(number get_prefixes)
printf 'server start time: %s\n' "$(date --utc --date "@$((started / 1000))" '+%Y-%m-%d %H:%M:%S UTC')"
printf '#total_sets: %s\n#total_gets: %s\n#total_getprefixes: %s\n' "$sets" "$gets" "$prefixes"
((sets > 0 && gets > 0 && prefixes > 0)) || fail "the server counted no operation of some kind"

kill -TERM "$server"
code=0
wait "$server" || code=$?
server=''
if ((code != 0)); then
    cat "$scratch/server.log" >&2
    fail "the server ended with exit code $code after SIGTERM, expected 0"
fi
say "the server stopped cleanly; no answer was wrong"
orlopd verify --data "$scratch/data" --acks "$scratch/acks" || fail "the files do not hold what was acknowledged"
say "the files hold every acknowledged write"
