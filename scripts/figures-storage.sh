#!/usr/bin/env bash
# The figures of storage under load, from one command: a Markdown table on standard output.
#
#   scripts/figures-storage.sh [--quick] [--only PART,...] [--restart-keys N] [--memory-keys N]
#
#   --quick            one round on little data: shows that it works, not how good it is
#   --only PART,...    of: amplification, latency, large, restart, memory
#   --restart-keys N   keys of 4 KiB in the store that is restarted (default 1048576, 4 GiB)
#   --memory-keys N    keys of 32 B, then of 128 B, in the store whose memory is measured (default 5000000)
#
# amplification: a store is overwritten at random four times; what that cost the device, and what the store takes then.
# latency: the same reads and writes before compaction has anything to do and while it works.
# large: values of 4 MiB beside what the device and the loopback device allow in the same round, small calls at a fixed
# rate beside four clients with values of 4 MiB, and reads at a fixed rate beside 16 writers.
# restart: two shards, the page cache dropped; from the start of the process to the ready line and to the first value.
# memory: resident memory beyond that of the empty server and the key bytes, with no cache: loaded, and started again.
#
# The server has one shard on CPU 0 (restart: two on 0 and 1), the load generator CPU 1. Amplification and memory do not
# depend on what else the machine does; times and latencies do, see scripts/figures.sh. Everything that was read is kept
# beside the build, the path is printed at the end. Needs about 12 GiB of disk; dropping the page cache needs root.
#
# Back-quotes in the printed text are Markdown, not commands.
# shellcheck disable=SC2016
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'figures-storage: %s\n' "$*" >&2; }
# Also ends the script when called in a command substitution, whose exit code would be lost.
trap 'exit 1' USR1
fail() { say "$*"; kill -USR1 $$; exit 1; }
wrong() { say "$*; see --help"; exit 2; }

quick='' parts=amplification,latency,large,restart,memory restart_keys='' memory_keys=''
number() {
    [[ ${2:-} =~ ^[1-9][0-9]{0,9}$ ]] || wrong "$1 needs a number, not '${2:-}'"
    printf '%s' "$2"
}
while (($# > 0)); do
    case $1 in
    --quick) quick=1; shift ;;
    --only) parts=${2:-}; shift "$(($# > 1 ? 2 : 1))" ;;
    --restart-keys) restart_keys=$(number "$1" "${2:-}"); shift 2 ;;
    --memory-keys) memory_keys=$(number "$1" "${2:-}"); shift 2 ;;
    --help) sed -n '2,/^set /{/^set /d;/^# shellcheck/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) wrong "'$1' is not an option" ;;
    esac
done
for part in ${parts//,/ }; do
    case $part in
    amplification | latency | large | restart | memory) ;;
    *) wrong "'$part' is not a part" ;;
    esac
done
[[ -n $parts ]] || wrong "--only needs a part"

rounds=3 seconds=10 live_mib=1024 overwrites=4 calm_seconds=5
[[ -z $quick ]] || rounds=1 seconds=2 live_mib=256 overwrites=2 calm_seconds=2
restart_keys=${restart_keys:-$((${#quick} ? 65536 : 1048576))}
memory_keys=${memory_keys:-$((${#quick} ? 200000 : 5000000))}
(($(nproc) >= 2)) || fail "two CPUs are needed, one for the server and one for the load; this process may use $(nproc)"

cargo build --release --locked --package orlop --package orlop-bench >&2
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
PATH=$target/release:$PATH
scratch=$(mktemp -d "$target/figures-storage.XXXXXX")
raw=$scratch/raw.txt
server='' others=''
# Called by the trap below.
# shellcheck disable=SC2317
clean_up() {
    [[ -z $others ]] || kill "$others" 2>/dev/null || true
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$scratch/data" "$scratch/ready"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

now_us() { printf '%s' "${EPOCHREALTIME/./}"; }

# start ARGUMENT...: starts the server on $scratch/data; sets server, address, and begun_us and ready_us, the times at
# which it was started and at which its ready line came.
start() {
    local word rest
    mkfifo "$scratch/ready"
    begun_us=$(now_us)
    orlopd --data "$scratch/data" --listen 127.0.0.1:0 "$@" >"$scratch/ready" 2>"$scratch/server.log" &
    server=$!
    exec 3<"$scratch/ready"
    if ! read -r -t 300 -u 3 word address rest || [[ $word != ready: ]]; then
        cat "$scratch/server.log" >&2
        fail "the server did not say that it is ready (${rest-})"
    fi
    ready_us=$(now_us)
    rm "$scratch/ready"
}

stop() {
    local code=0
    kill -TERM "$server"
    wait "$server" || code=$?
    server=''
    exec 3<&-
    if ((code != 0)); then
        cat "$scratch/server.log" >&2
        fail "the server ended with exit code $code after SIGTERM"
    fi
}

# load ARGUMENT...: runs the load and leaves its JSON in $result.
load() {
    result=$(orlop-bench load --json --cpu 1 --server "$address" "$@")
    printf '%s\n' "$result" >>"$raw"
}

# field OBJECT NAME: a number out of the flat object OBJECT of $result.
field() {
    local value
    value=$(sed -n "s/.*\"$1\":{\([^}]*\)}.*/\1/p" <<<"$result" | tr ',' '\n' | sed -n "s/^\"$2\"://p")
    [[ -n $value ]] || fail "no $1.$2 in $result"
    printf '%s' "$value"
}

# calls: answered calls per second of $result.
calls() { sed -n 's/^{.*"callsPerSecond":\([0-9.]*\),"clients".*/\1/p' <<<"$result"; }

# beside ARGUMENT...: begins a load that goes on beside what is measured, and gives way to it; `alone` ends it.
beside() {
    nice -n 19 orlop-bench load --json --cpu 1 --server "$address" --warm-up 0 --duration 600 "$@" >"$scratch/others" &
    others=$!
    sleep 1
    kill -0 "$others" 2>/dev/null || fail "the load beside ended at once"
}
alone() {
    kill -INT "$others"
    wait "$others" || true
    others=''
}

# look: asks the server; `stat_of NAME` reads the answer: the number of the whole server, or the sum over its shards.
look() {
    seen=$(orlop --server "$address" stat)
    printf '%s\n' "$seen" >>"$raw"
}
stat_of() {
    awk -F '\t' -v name="$1" '
        $1 == name { whole = $2; known = 1 }
        $1 ~ "^shard[.][0-9]+[.]" name "$" { sum += $2 == "true" ? 1 : $2; found = 1 }
        END { if (known || found) printf "%.0f", known ? whole : sum; else exit 1 }' <<<"$seen" ||
        fail "the server tells no $1"
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", (b > 0 ? a / b : 0) }'; }
median() { tr ' ' '\n' <<<"$*" | sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b) }'; }

# Bytes that the kernel sent to storage for the server, and bytes written to the block device by everybody.
server_bytes() { awk '/^write_bytes/ { print $2 }' "/proc/$server/io"; }
device_bytes() {
    local file
    file=/sys/dev/block/$(findmnt --noheadings --output MAJ:MIN --target "$scratch" | head -n 1 | tr -d ' ')/stat
    [[ -r $file ]] || { echo 0; return; }
    awk '{ printf "%.0f", $7 * 512 }' "$file"
}

declare -A runs
# note FIGURE VALUE: one round's value of a figure.
note() { runs[$1]="${runs[$1]:+${runs[$1]} }$2"; say "$1: $2"; }

# settle: waits until compaction and the keepers of spare files have nothing more to do.
settle() {
    local before='' tries
    for ((tries = 0; tries < 120; tries++)); do
        look
        local after
        after="$(stat_of compacted_bytes) $(stat_of disk_allocated_bytes) $(stat_of commit_bytes)"
        [[ $after != "$before" ]] || return 0
        before=$after
        sleep "$calm_seconds"
    done
    fail "compaction does not come to rest: $before"
}

# Overwrites keys at random until each was overwritten so many times on average; note the most that the store took.
overwrite() {
    local keys=$1 value_size=$2 first
    look
    first=$(stat_of sets)
    most=0
    while
        look
        above "$(ratio "$(stat_of disk_allocated_bytes)" "$(stat_of logical_bytes)")" "$most" &&
            most=$(ratio "$(stat_of disk_allocated_bytes)" "$(stat_of logical_bytes)")
        (($(stat_of sets) - first < overwrites * keys))
    do
        load --mix 0:1 --clients 50 --keys "$keys" --value-size "$value_size" --warm-up 0 --duration 2
    done
}

amplification() {
    local value_size=$1 keys=$(((live_mib << 20) / $1)) name=$2 most
    start --shards 1 --cpus 0
    load --preload --clients 8 --mix 1:0 --keys "$keys" --value-size "$value_size" --warm-up 0 --duration 0.1
    settle
    local sets bytes copied server_before device_before written begun=$SECONDS
    sets=$(stat_of sets) bytes=$(stat_of commit_bytes) copied=$(stat_of compacted_bytes)
    server_before=$(server_bytes) device_before=$(device_bytes)
    overwrite "$keys" "$value_size"
    note "set_$name" "$(ratio "$(($(stat_of sets) - sets))" "$((SECONDS - begun))")"
    settle
    written=$((($(stat_of sets) - sets) * (16 + value_size)))
    note "write_$name" "$(ratio "$(($(stat_of commit_bytes) - bytes))" "$written")"
    note "copied_$name" "$(ratio "$(($(stat_of compacted_bytes) - copied))" "$written")"
    note "server_$name" "$(ratio "$(($(server_bytes) - server_before))" "$written")"
    note "device_$name" "$(ratio "$(($(device_bytes) - device_before))" "$written")"
    note "space_$name" "$(ratio "$(stat_of disk_allocated_bytes)" "$(stat_of logical_bytes)")"
    note "space_peak_$name" "$most"
    note "du_$name" "$(ratio "$(du --block-size 1 --summarize "$scratch/data" | cut -f 1)" "$(stat_of logical_bytes)")"
    stop
    rm -rf "$scratch/data"
}

# The same load twice. `--cache` decides whether reads come from memory or from the disk.
latency() {
    local cache=$1 name=$2 keys=$(((live_mib << 20) / 4096)) tries copied
    # So short that the first one does not leave enough dead for compaction.
    local duration=$(((seconds + 1) / 2))
    local -a same=(--mix 80:20 --clients 50 --keys "$keys" --value-size 4096 --warm-up 1 --duration "$duration")
    start --shards 1 --cpus 0 --cache "$cache"
    load --preload --clients 8 --mix 1:0 --keys "$keys" --value-size 4096 --warm-up 0 --duration 0.1
    settle
    load "${same[@]}"
    note "get_idle_$name" "$(field read p99Us)"
    note "set_idle_$name" "$(field write p99Us)"
    look
    (($(stat_of compacted_bytes) == 0)) || say "compaction has already begun: the first figure is of a busy one"
    for ((tries = 0; tries < 60; tries++)); do
        look
        copied=$(stat_of compacted_bytes)
        ((copied < 32 << 20)) || break
        load --mix 0:1 --clients 8 --batch 16 --keys "$keys" --value-size 4096 --warm-up 0 --duration 1
    done
    load "${same[@]}"
    note "get_busy_$name" "$(field read p99Us)"
    note "set_busy_$name" "$(field write p99Us)"
    look
    note "copied_mib_s_$name" "$(ratio "$((($(stat_of compacted_bytes) - copied) >> 20))" "$((duration + 1))")"
    note "get_ratio_$name" "$(ratio "${runs[get_busy_$name]##* }" "${runs[get_idle_$name]##* }")"
    stop
    rm -rf "$scratch/data"
}

# Values of 4 MiB, and what others get beside them.
large() {
    local device loopback clients what
    local -a four_mib=(--keys 50 --value-size 4194304 --warm-up 1 --duration "$seconds")
    # So many clients that a read hardly ever waits in the load generator, behind a write of its connection.
    local -a small=(--clients 32 --rate 1000 --mix 1:1 --keys 10000 --value-size 100 --warm-up 1 --duration "$seconds")
    local -a reads=(--clients 8 --rate 5000 --mix 1:0 --keys 100000 --value-size 512 --warm-up 1 --duration "$seconds")
    start --shards 1 --cpus 0
    load --preload --clients 4 --mix 0:1 --keys 50 --value-size 4194304 --warm-up 0 --duration 1
    result=$(orlop-bench device --json --dir "$scratch" --seconds 2)
    device=$(field syncWrite1m mibPerSecond)
    loopback=$(orlop-bench loopback --json --seconds 2 --cpu 0 --peer-cpu 1 |
        sed -n 's/.*"mibPerSecond":\([0-9.]*\).*/\1/p')
    note device_mib "$device"
    note loopback_mib "$loopback"
    for clients in 1 4; do
        load --clients "$clients" --mix 0:1 "${four_mib[@]}"
        note "large_set_$clients" "$(ratio "$(awk -v c="$(calls)" 'BEGIN { print 4 * c }')" "$device")"
        load --clients "$clients" --mix 1:0 "${four_mib[@]}"
        note "large_get_$clients" "$(ratio "$(awk -v c="$(calls)" 'BEGIN { print 4 * c }')" "$loopback")"
    done
    load "${small[@]}"
    note small_get_alone "$(field read p99Us)"
    note small_set_alone "$(field write p99Us)"
    for what in 1:0 0:1; do
        beside --clients 4 --mix "$what" --keys 50 --value-size 4194304
        load "${small[@]}"
        note "small_get_$what" "$(field read p99Us)"
        note "small_set_$what" "$(field write p99Us)"
        alone
    done
    load --preload --clients 8 --mix 1:0 --keys 100000 --value-size 512 --warm-up 0 --duration 0.1
    load "${reads[@]}"
    note read_alone "$(field read p99Us)"
    beside --clients 16 --mix 0:1 --keys 100000 --value-size 512
    load "${reads[@]}"
    alone
    note read_beside "$(ratio "$(field read p99Us)" "${runs[read_alone]##* }")"
    stop
    rm -rf "$scratch/data"
}

drop_page_cache() {
    sync --file-system "$scratch"
    # The log is read past the page cache in any case; the manifest and the directory are not.
    { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || say "not root: the page cache stays"
}

restart_once() {
    local name=$1 first_us warm_us
    shift
    drop_page_cache
    # The program that asks is no part of what is measured.
    orlop --version >/dev/null
    start --shards 2 --cpus 0,1 "$@"
    orlop --server "$address" get k000000000...... >"$scratch/value"
    first_us=$(now_us)
    (($(stat --format %s "$scratch/value") == 4096)) || fail "the first value has another size"
    note "ready_$name" "$(ratio "$((ready_us - begun_us))" 1000)"
    note "first_$name" "$(ratio "$((first_us - begun_us))" 1000)"
    look
    (($(stat_of keys) == restart_keys)) || fail "the restarted server has $(stat_of keys) keys, expected $restart_keys"
    while (($(stat_of warming) > 0)); do
        sleep 0.1
        look
    done
    warm_us=$(now_us)
    if (($(stat_of warmed_bytes) > 0)); then
        note "warmed_mib_$name" "$(($(stat_of warmed_bytes) >> 20))"
        note "warm_rate_$name" "$(ratio "$(($(stat_of warmed_bytes) >> 20))" "$(ratio "$((warm_us - ready_us))" 1000000)")"
    fi
    stop
}

restart() {
    local round
    start --shards 2 --cpus 0,1
    load --preload --clients 8 --mix 1:0 --keys "$restart_keys" --value-size 4096 --warm-up 0 --duration 0.1
    stop
    for ((round = 1; round <= rounds; round++)); do
        restart_once cached
        restart_once uncached --cache 0
    done
    rm -rf "$scratch/data"
}

# per_key NAME EMPTY KEY_BYTES: resident bytes per key beyond the empty server and the key.
per_key() {
    look
    note "$1" "$(awk -v r="$(stat_of resident_bytes)" -v e="$2" -v n="$memory_keys" -v k="$3" 'BEGIN { printf "%.1f", (r - e) / n - k }')"
}

# memory KEY_BYTES
memory() {
    local empty
    start --shards 1 --cpus 0 --cache 0
    look
    empty=$(stat_of resident_bytes)
    load --preload --clients 16 --mix 1:0 --key-size "$1" --value-size 10 --keys "$memory_keys" --warm-up 0 --duration 0.1
    per_key "memory_loaded_$1" "$empty" "$1"
    note "memory_index_$1" "$(awk -v i="$(stat_of index_bytes)" -v n="$memory_keys" -v k="$1" 'BEGIN { printf "%.1f", i / n - k }')"
    stop
    start --shards 1 --cpus 0 --cache 0
    per_key "memory_restarted_$1" "$empty" "$1"
    note "memory_peak_$1" "$(awk -v e="$empty" -v n="$memory_keys" -v k="$1" '/^VmHWM/ { printf "%.1f", ($2 * 1024 - e) / n - k }' "/proc/$server/status")"
    stop
    rm -rf "$scratch/data"
}

for part in ${parts//,/ }; do
    say "$part"
    case $part in
    amplification)
        amplification 1024 1k
        amplification 4096 4k
        ;;
    latency)
        for ((round = 1; round <= rounds; round++)); do
            latency "$((live_mib * 2))MiB" memory
            latency "$((live_mib / 8))MiB" disk
        done
        ;;
    large) for ((round = 1; round <= rounds; round++)); do large; done ;;
    restart) restart ;;
    memory) for size in 32 128; do memory $size; done ;;
    esac
done

# row TEXT FIGURE UNIT [BOUND]: one line of the table, judged by the median; nothing if it was not measured.
row() {
    local value verdict=''
    [[ -n ${runs[$2]-} ]] || return 0
    # shellcheck disable=SC2086 # the runs are words
    value=$(median ${runs[$2]})
    [[ -z ${4:-} ]] || verdict=$(awk -v v="$value" -v b="$4" 'BEGIN { print (v <= b ? "met" : "**over**") }')
    printf '| %s | %s %s | %s | %s | %s |\n' "$1" "$value" "$3" "${4:+at most $4 $3}" "$verdict" "${runs[$2]// /, }"
}

model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
printf '%s, %s CPUs, %s, Linux %s, data on %s; commit %s; medians\n\n' \
    "$model" "$(nproc)" "$(awk '/MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)" "$(uname -r)" \
    "$(findmnt --noheadings --output FSTYPE --target "$scratch" | head -n 1)" \
    "$(git describe --always --dirty 2>/dev/null || echo unknown)"
printf 'Server: default settings but for shards, CPUs and cache; keys of 16 B unless said.\n\n'
printf '| figure | measured | goal | verdict | runs |\n|---|---|---|---|---|\n'
for size in 1k 4k; do
    shown="$live_mib MiB live in values of ${size%k} KiB, each overwritten $overwrites times at random"
    row "$shown: written to the log per byte of keys and values" "write_$size" x 2.2
    row 'of that, copies of compaction' "copied_$size" x
    row 'written by the server, new files filled with zeros included (`/proc/PID/io`)' "server_$size" x
    row 'written to the device by everybody' "device_$size" x
    row 'files of the log per live byte, once compaction rests' "space_$size" x 2.2
    row 'the same, the most while overwriting' "space_peak_$size" x 2.2
    row 'the same at the end, by `du`' "du_$size" x
    row 'durable SET meanwhile, 50 clients' "set_$size" /s
done
for where in memory disk; do
    row "GET from $where among 20 % SETs, 50 clients, p99, compaction idle" "get_idle_$where" us
    row 'the same, compaction busy' "get_busy_$where" us
    row 'busy per idle' "get_ratio_$where" x 2
    row 'SET among them, p99, idle' "set_idle_$where" us
    row 'SET among them, p99, busy' "set_busy_$where" us
    row 'copied meanwhile' "copied_mib_s_$where" MiB/s
done
row 'O_DSYNC writes of 1 MiB to the device' device_mib MiB/s
row 'one TCP connection over loopback, raw' loopback_mib MiB/s
for clients in 1 4; do
    row "SET of 4 MiB, $clients clients, bandwidth per that of the device (goal: at least 0.5)" "large_set_$clients" x
    row "GET of 4 MiB, $clients clients, bandwidth per that of loopback (goal: at least 0.8)" "large_get_$clients" x
done
row '32 clients, 500 GET and 500 SET per second of 100 B: p99 of GET, alone' small_get_alone us
row 'p99 of SET, alone' small_set_alone us
row 'p99 of GET beside four clients that GET 4 MiB' small_get_1:0 us 5000
row 'p99 of SET beside them' small_set_1:0 us 5000
row 'p99 of GET beside four clients that SET 4 MiB' small_get_0:1 us 5000
row 'p99 of SET beside them' small_set_0:1 us 5000
row '8 clients, 5,000 GET per second of 512 B: p99 alone' read_alone us
row 'p99 beside 16 clients that SET as fast as they can, per alone' read_beside x 2
for how in cached uncached; do
    shown="restart with $restart_keys keys of 4 KiB in two shards, ${how/uncached/\`--cache 0\`}"
    row "${shown/%cached/default cache}, to the ready line" "ready_$how" ms 500
    row 'to the first value, read by `orlop get`' "first_$how" ms
    row 'brought back into the cache' "warmed_mib_$how" MiB
    row 'how fast' "warm_rate_$how" MiB/s
done
for size in 32 128; do
    row "memory per key beyond $size B of key, $memory_keys keys, no cache, after the load" "memory_loaded_$size" B 96
    row 'the same after a restart' "memory_restarted_$size" B 96
    row 'the most during that restart' "memory_peak_$size" B
    row 'the indexes by their own count' "memory_index_$size" B
done
say "everything that was read: $raw"
