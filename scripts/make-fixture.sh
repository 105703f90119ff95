#!/usr/bin/env bash
# Makes a data directory of the present format for tests/fixtures: small, and with everything in it that the format has:
# several segments with footers, tombstones, copies of compaction, retired segments, segments of another number of
# shards, and a log that was not closed. Run it once for each released format; what is there is never made again.
#
#   scripts/make-fixture.sh DIRECTORY    (which must not exist)
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { printf 'make-fixture: %s\n' "$*" >&2; exit 1; }
target=${1:-}
[[ -n $target && $target != --* ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
[[ ! -e $target ]] || fail "$target exists"
cargo build --release --locked
bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
mkdir -p "$target"
target=$(realpath "$target")
server=''
trap '[[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true' EXIT

start() {
    "$bin/orlopd" --data "$target/data" --listen 127.0.0.1:0 --max-value-size 4KiB --segment-size 80KiB --cache 1MiB \
        --shards "$1" >"$target/ready" 2>"$target/log" &
    server=$!
    until grep -q '^ready: ' "$target/ready"; do
        kill -0 "$server" 2>/dev/null || fail "the server did not start: $(cat "$target/log")"
        sleep 0.05
    done
    address=$(sed 's/^ready: //; s/ .*//' "$target/ready")
}
orlop() { "$bin/orlop" --server "$address" "$@" >/dev/null; }
end() {
    kill "-$1" "$server"
    wait "$server" 2>/dev/null || true
    server=''
}
value() { printf '%s %s' "$1" "$(printf '%*s' "$2" '' | tr ' ' "${1:0:1}")"; }

start 1
for round in 1 2 3; do
    for number in {1..30}; do
        orlop set "key/$number" "$(value "$number.$round" $((number * 25)))"
    done
    orlop delete key/30
done
orlop set hex:00ff binary
orlop delete key/1
end TERM
# Long enough to move everything and to use files again. A record of the last sets fills a block, so that nothing of them is
# dead and their segments stay.
start 2
orlop set key/31 "$(value 31 700)"
sleep 3
end TERM
start 1
for number in {32..90}; do
    orlop set "key/$number" "$(value "$number" 3950)"
done
orlop delete key/90
sleep 3
end TERM
foreign=0
for try in 1 2 3 4 5 6 7 8; do
    start 2
    orlop set key/2 "$(value "2.$try" 100)"
    orlop delete key/3
    orlop set key/3 "$(value "3.$try" 100)"
    end KILL
    foreign=$("$bin/orlopd" verify --json --data "$target/data" | grep -o '"foreignSegments":[0-9]*' | cut -d : -f 2 | paste -sd+ | bc)
    ((foreign == 0)) || break
done
((foreign > 0)) || fail 'everything was moved before the server was killed: try again'
rm -f "$target/ready" "$target/log"
"$bin/orlopd" inspect --data "$target/data" >"$target/inspect.txt"
for file in "$target"/data/segment-*.log; do
    "$bin/orlopd" inspect --data "$target/data" "$(basename "$file")" --records >>"$target/inspect.txt"
done
printf 'make-fixture: %s segments of another number of shards; now add contents.txt: ORLOP_WRITE_CONTENTS=1 cargo test --test it fixtures\n' "$foreign"
