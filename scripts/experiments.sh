#!/usr/bin/env bash
# The experiments, each from one command: raw JSON, tables, plots (PNG and SVG) and report.html in a directory of results.
#
#   scripts/experiments.sh [exp1|exp2|exp3|peers|all]... [OPTION]...
#
#   exp1    sizes of values, 512 B to 4 MiB: latency of one caller, read-only and 50/50
#   exp2    the server is taken down and started again with 4 GiB: to ready, first read, everything in memory; beside Redis
#   exp3    1, 2, 4, ... clients until throughput stops growing: latency and throughput, read-only and 50/50
#   peers   other systems beside orlop, interleaved: GET of 50 clients, SET of 1 and 50, with 1 and 16 calls in flight
#   all     the four (the default)
#
#   --quick            one short round on little data, at most 5 minutes: shows that it works, not how fast
#   --out DIR          where the results go (missing or empty); default bench/results/DATE-MACHINE, with a number if taken
#   --rounds N         repetitions, interleaved; figures are medians (3)
#   --seconds S        length of one run (10)
#   --warm-up S        load before it that is not counted (2)
#   --sizes LIST       exp1: bytes of a value (512,4096,524288,1048576,4194304)
#   --data-mib N       exp1: MiB of values in a store, at most 100,000 keys and at least 16 (512)
#   --store-mib N      exp2: MiB of values of 4 KiB in the store (4096)
#   --clients-max N    exp3: where the doubling ends at the latest (1024)
#   --value-size N     exp3, peers: bytes of a value (512)
#   --keys N           exp3, peers: number of keys (100000)
#   --systems LIST     peers: which (orlop,redis,redis-always,valkey,valkey-always,memcached,etcd,redb,fjall)
#   --scratch DIR      where the stores are made and removed again; its device is what is measured (the build's directory)
#   --binaries DIR     take orlopd, orlop and orlop-bench from there instead of building them
#
# Servers have CPU 0, the load generator CPU 1; in exp2 a server has all CPUs and no load. A peer that is not installed
# is left out, and the results say so. Nothing appears under its name before it is whole: what fails or is interrupted
# leaves no results, and ends the servers that it started.
#
# On a virtual machine the host can withhold CPUs (the "steal" of /proc/stat). A run that lost more than STOLEN_MAX percent
# (default 2) is repeated after a pause, up to TRIES times (default 4); the one that lost least stands, with its loss.
#
# Exit codes: 0 done, 1 a run failed and the results are void, 2 wrong usage, 3 this machine lacks something, 128 + signal.
set -euo pipefail
called_in=$PWD
cd "$(dirname "$0")/.."

say() { printf 'experiments: %s\n' "$*" >&2; }
# Also ends the script when called in a command substitution, whose exit code would be lost.
trap 'exit 1' USR1
fail() { say "$*"; kill -USR1 $$; exit 1; }
# fail_with FILE SENTENCE: shows the end of a log first.
fail_with() { tail -n 5 "$scratch/$1" >&2 2>/dev/null || true; fail "$2"; }
wrong() { say "$*; see --help"; exit 2; }
lacks() { say "$*"; exit 3; }

# --- options ---

# check_number NAME VALUE LEAST MOST: refuses what is no whole number within the limits.
check_number() {
    [[ $2 =~ ^[1-9][0-9]{0,9}$ && $2 -ge $3 && $2 -le $4 ]] || wrong "$1 is '$2': give a whole number from $3 to $4"
}
check_seconds() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,4})([.][0-9]{1,3})?$ ]] || wrong "$1 is '$2': give a number of seconds, at most 99999"
}

systems_known=(orlop redis redis-always valkey valkey-always memcached etcd redb fjall)
declare -a experiments=()
declare -A option=()
# As it is told in the results: places on this machine are left out.
command_line='scripts/experiments.sh'
while (($# > 0)); do
    case $1 in
    exp1 | exp2 | exp3 | peers) experiments+=("$1"); command_line+=" $1"; shift ;;
    all) experiments+=(exp1 exp2 exp3 peers); command_line+=' all'; shift ;;
    --quick) option[quick]=true; command_line+=' --quick'; shift ;;
    --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/experiments.sh; exit 0 ;;
    --out | --rounds | --seconds | --warm-up | --sizes | --data-mib | --store-mib | --clients-max | --value-size | --keys | \
        --systems | --scratch | --binaries)
        [[ -n ${2:-} ]] || wrong "$1 needs a value"
        option[${1#--}]=$2
        [[ $1 =~ ^--(out|scratch|binaries)$ ]] || command_line+=" $1 $2"
        shift 2 ;;
    -*) wrong "'$1' is not an option" ;;
    *) wrong "'$1' is not an experiment: exp1, exp2, exp3, peers and all are" ;;
    esac
done
((${#experiments[@]} > 0)) || experiments=(exp1 exp2 exp3 peers)
mapfile -t experiments < <(printf '%s\n' "${experiments[@]}" | awk '!seen[$0]++')

quick=${option[quick]:-false}
defaults=(3 10 2 512 4096 1024 100000 "${TRIES:-4}" 2)
! $quick || defaults=(1 1 0.2 64 256 128 10000 1 0.2)
rounds=${option[rounds]:-${defaults[0]}} seconds=${option[seconds]:-${defaults[1]}} warm_up=${option[warm-up]:-${defaults[2]}}
data_mib=${option[data-mib]:-${defaults[3]}} store_mib=${option[store-mib]:-${defaults[4]}}
clients_max=${option[clients-max]:-${defaults[5]}} keys=${option[keys]:-${defaults[6]}}
tries=${defaults[7]} device_seconds=${defaults[8]}
sizes=${option[sizes]:-512,4096,524288,1048576,4194304} value_size=${option[value-size]:-512}
systems=${option[systems]:-$(IFS=,; echo "${systems_known[*]}")}
stolen_max=${STOLEN_MAX:-2} pause=20 key_size=16
server_cpu=0 load_cpu=1

check_number --rounds "$rounds" 1 1000
check_seconds --seconds "$seconds"
check_seconds --warm-up "$warm_up"
awk -v s="$seconds" 'BEGIN { exit !(s >= 0.1) }' || wrong "--seconds is $seconds: give at least 0.1"
check_number --data-mib "$data_mib" 1 65536
check_number --store-mib "$store_mib" 1 1048576
check_number --clients-max "$clients_max" 1 8192
check_number --value-size "$value_size" 1 16777216
check_number --keys "$keys" 1 1000000000
check_number TRIES "$tries" 1 100
[[ $stolen_max =~ ^(0|[1-9][0-9]?)([.][0-9]+)?$ ]] || wrong "STOLEN_MAX is '$stolen_max': give a number of percent"
for size in ${sizes//,/ }; do check_number --sizes "$size" 1 16777216; done
mapfile -t sizes < <(tr ',' '\n' <<<"$sizes" | sed '/^$/d' | sort -nu)
((${#sizes[@]} > 0)) || wrong "--sizes is empty: give bytes, like 512,4096"
IFS=, read -r -a systems <<<"$systems"
for system in "${systems[@]}"; do
    [[ " ${systems_known[*]} " == *" $system "* ]] || wrong "'$system' is not a system: ${systems_known[*]} are"
done
# Paths are meant as seen from where the script was called.
here() { [[ $1 == /* ]] && printf '%s' "$1" || printf '%s/%s' "$called_in" "$1"; }

if [[ -n ${option[out]:-} ]]; then
    out=$(realpath --canonicalize-missing -- "$(here "${option[out]}")")
    [[ -d $(dirname "$out") ]] || wrong "--out is ${option[out]}, but there is no directory $(dirname "$out")"
    [[ ! -e $out || -d $out && -z $(ls -A "$out") ]] ||
        wrong "--out is ${option[out]}, which is not empty: name a place where nothing is"
else
    model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1 | sed 's/([^)]*)//g; s/@.*//; s/\bCPU\b//' |
        tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' - | sed 's/^-//; s/-$//')
    out=$PWD/bench/results/$(date -u +%F)-${model:-unknown}-$(nproc)-cpus
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
places=$target
[[ -z ${option[scratch]:-} ]] || places=$(here "${option[scratch]}")
[[ -d $places || -z ${option[scratch]:-} ]] || wrong "--scratch is ${option[scratch]}, which is no directory"
(($(nproc) >= 2)) || lacks "two CPUs are needed, one for the server and one for the load; this process may use $(nproc)"

# --- programs, scratch, end ---

binaries=$(here "${option[binaries]:-$target/release}")
[[ -n ${option[binaries]:-} ]] || cargo build --release --locked --package orlop --package orlop-bench >&2
for program in orlopd orlop orlop-bench; do
    [[ -x $binaries/$program ]] || wrong "there is no $program in $binaries (--binaries)"
done
PATH=$binaries:$PATH
export ORLOP_BENCH=$binaries/orlop-bench

scratch=$(mktemp -d "$places/experiments.XXXXXX")
partial=''
server='' peer='' running=''

# Called by the trap below.
# shellcheck disable=SC2317
clean_up() {
    local code=$? process
    trap '' INT TERM
    for process in $running $server; do
        kill -TERM "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    [[ -z $peer ]] || scripts/peers.sh stop "$peer" --dir "$scratch/$peer" >/dev/null 2>&1 || true
    rm -rf "$scratch"
    [[ -z $partial ]] || { rm -rf "$partial"; say "nothing was written (exit code $code)"; }
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$(dirname "$out")"
partial=$(mktemp -d "$out.partial.XXXXXX")
mkdir "$partial/raw"

# needs_room MIB WHAT: refuses to begin what the disk cannot hold.
needs_room() {
    local free
    free=$(df --output=avail --block-size=1M "$scratch" | tail -n 1 | tr -d ' ')
    ((free >= $1)) || lacks "$2 needs about $1 MiB on the disk of $places, and $free MiB are free"
}

# --- JSON ---

json_text() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/; }
    printf '"%s"' "${text//[[:cntrl:]]/ }"
}

# record EXPERIMENT LINE: one line of raw results.
record() {
    printf '%s\n' "$2" >>"$partial/raw/$1.jsonl" || fail "cannot write the results of $1: is the disk full?"
}

# top_field NAME: a number of the outer object of $result.
top_field() {
    local value
    value=$(sed 's/^{//; s/}$//; s/{[^{}]*}//g' <<<"$result" | tr ',' '\n' | sed -n "s/^\"$1\"://p")
    [[ -n $value ]] || fail "no $1 in $result"
    printf '%s' "$value"
}

# --- runs ---

steps_all=0 steps_done=0
# step TEXT: says what is done now, and how far all of it is.
step() {
    local full=$((steps_done < steps_all ? 24 * steps_done / steps_all : 24))
    printf 'experiments: [%.*s%.*s] %s/%s  %s\n' "$full" '########################' "$((24 - full))" \
        '------------------------' "$((steps_done + 1))" "$steps_all" "$1" >&2
    steps_done=$((steps_done + 1))
}

cpu_time() { awk '/^cpu[01] / { for (i = 2; i <= 9; i++) all += $i; stolen += $9 } END { print all, stolen }' /proc/stat; }

# withheld BEFORE AFTER: the share in percent that the host withheld between two calls of cpu_time.
withheld() {
    awk -v a="$1" -v b="$2" 'BEGIN {
        split(a, x, " "); split(b, y, " "); d = y[1] - x[1]; printf "%.1f", (d > 0 ? 100 * (y[2] - x[2]) / d : 0) }'
}
above() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b) }'; }

# bench ARGUMENT...: runs orlop-bench; what it printed is in $result. In the background, so that a signal ends it and the
# script at once.
bench() {
    local code=0
    (cd "$scratch" && exec orlop-bench "$@") >"$scratch/run.json" &
    running=$!
    wait "$running" || code=$?
    running=''
    ((code == 0)) || fail_with server.log "'orlop-bench $*' ended with exit code $code: the results are void"
    result=$(<"$scratch/run.json")
}

stolen_all=()
# measure ARGUMENT...: as bench, again when the host withheld too much; the $result is of the run that lost least, the
# share that it lost is in $stolen.
measure() {
    local try before share best
    for ((try = 1; try <= tries; try++)); do
        before=$(cpu_time)
        bench "$@"
        share=$(withheld "$before" "$(cpu_time)")
        if ((try == 1)) || above "$stolen" "$share"; then
            stolen=$share best=$result
        fi
        if ((try == tries)) || ! above "$stolen" "$stolen_max"; then break; fi
        say "the host withheld $share % of the CPUs: again in $pause s"
        pause_for "$pause"
    done
    result=$best
    stolen_all+=("$stolen")
}

# A pause that a signal ends.
pause_for() {
    sleep "$1" &
    running=$!
    wait "$running"
    running=''
}

# load_of EXPERIMENT ROUND SYSTEM LOAD ARGUMENT...: one run against the server at $address, recorded.
load_of() {
    local experiment=$1 round=$2 system=$3 load=$4
    local -A mix=([read-only]=1:0 [50/50]=50:50 [write-only]=0:1)
    shift 4
    # The same operations and keys for every system and size, others in every round.
    local -a arguments=(--mix "${mix[$load]}" --key-size "$key_size" --duration "$seconds" --warm-up "$warm_up"
        --seed "$round" "$@")
    measure load --json --cpu "$load_cpu" --server "$address" "${arguments[@]}"
    record "$experiment" "$(printf '{"round":%s,"system":"%s","load":"%s","stolenPercent":%s,"command":%s,"run":%s}' \
        "$round" "$system" "$load" "$stolen" \
        "$(json_text "orlop-bench load --json --cpu $load_cpu --server ADDRESS ${arguments[*]}")" "$result")"
}

# fill ARGUMENT...: writes every key once; what is measured meanwhile is of no interest.
fill() { bench load --json --server "$address" --key-size "$key_size" --preload --mix 1:0 --warm-up 0 --duration 0.1 "$@"; }

# baselines WHEN: what device and loopback do without a server.
baselines() {
    measure device --json --dir . --seconds "$device_seconds"
    record device "$(printf '{"when":"%s","stolenPercent":%s,"run":%s}' "$1" "$stolen" "$result")"
    measure loopback --json --seconds "$device_seconds" --cpu "$load_cpu" --peer-cpu "$server_cpu"
    record loopback "$(printf '{"when":"%s","stolenPercent":%s,"run":%s}' "$1" "$stolen" "$result")"
}

# --- servers ---

now_us() { printf '%s' "${EPOCHREALTIME/./}"; }
ms_since() { awk -v a="$1" -v b="$(now_us)" 'BEGIN { printf "%.1f", (b - a) / 1000 }'; }

# start ARGUMENT...: starts orlopd on $scratch/orlop; sets server, address and begun.
start() {
    local word='' rest=''
    mkdir -p "$scratch/orlop"
    mkfifo "$scratch/ready"
    begun=$(now_us)
    orlopd --data "$scratch/orlop" --listen 127.0.0.1:0 "$@" >"$scratch/ready" 2>"$scratch/server.log" &
    server=$!
    exec 3<"$scratch/ready"
    read -r -t 300 -u 3 word address rest || true
    [[ $word == ready: ]] || fail_with server.log "the server did not say that it is ready ($word $rest)"
    rm "$scratch/ready"
}

stop() {
    local code=0
    kill -TERM "$server" || true
    wait "$server" || code=$?
    server=''
    exec 3<&-
    ((code == 0)) || fail_with server.log "the server ended with exit code $code: the results are void"
}

one_shard=(--shards 1 --cpus "$server_cpu")

# peer_start NAME [ARGUMENT...]: starts a peer; sets address and peer_settings. Returns 3, with the sentence in $why, if it is
# not installed.
peer_start() {
    local name=$1 code=0 line
    shift
    mkdir -p "$scratch/$name"
    peer=$name
    scripts/peers.sh start "$name" --dir "$scratch/$name" "$@" >"$scratch/peer.out" 2>"$scratch/peer.log" || code=$?
    if ((code == 3)) && why=$(grep 'is not installed' "$scratch/peer.log"); then
        why=${why#peers: } peer=''
        rm -rf "${scratch:?}/$name"
        return 3
    fi
    line=$(sed -n 's/^ready: //p' "$scratch/peer.out" | head -n 1)
    [[ $code == 0 && -n $line ]] ||
        fail_with peer.log "scripts/peers.sh start $name ended with exit code $code and ${line:-no ready line}"
    address=${line%% *}
    # Where things lie on this machine is nobody's business.
    peer_settings=$(sed "s|$scratch/$name|DIR|g; s|$binaries/||g; s|$target/||g; s/^peers: $name: *//" "$scratch/peer.log")
}

peer_stop() {
    local name=$1 code=0
    scripts/peers.sh stop "$name" --dir "$scratch/$name" >/dev/null 2>"$scratch/peer.log" || code=$?
    ((code == 0)) || fail_with peer.log "scripts/peers.sh stop $name ended with exit code $code"
    peer=''
}

declare -A left_out=()
# leave_out EXPERIMENT SYSTEM: notes that a peer is not there, with the sentence of peers.sh.
leave_out() {
    left_out[$1-$2]=true
    say "$2 is left out: $why"
    record "$1" "$(printf '{"system":"%s","skipped":%s}' "$2" "$(json_text "$why")")"
}

# --- the experiments ---

exp1() {
    local round size count load
    needs_room "$((data_mib * 6 + 1024))" exp1
    for ((round = 1; round <= rounds; round++)); do
        for size in "${sizes[@]}"; do
            count=$(((data_mib << 20) / size))
            ((count >= 16)) || count=16
            ((count <= 100000)) || count=100000
            start "${one_shard[@]}" --cache "$((data_mib * 2 + 16 * (size >> 20) + 64))MiB"
            fill --clients 8 --keys "$count" --value-size "$size"
            for load in read-only 50/50; do
                step "exp1, round $round of $rounds: values of $(numfmt --to=iec --suffix=B "$size"), $load"
                load_of exp1 "$round" orlop "$load" --clients 1 --keys "$count" --value-size "$size"
            done
            stop
            rm -rf "$scratch/orlop"
        done
    done
}

first_key=k000000000......

drop_page_cache() {
    sync --file-system "$scratch"
    { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || say "not root: the page cache stays"
}

# record_restart ROUND SYSTEM COMMAND: from stop_ms, ready_ms, first_ms and all_ms.
record_restart() {
    record exp2 "$(printf '{"round":%s,"system":"%s","stolenPercent":%s,"command":%s,"restart":{"keys":%s,"valueSize":4096,"stopMs":%s,"readyMs":%s,"firstReadMs":%s,"allInMemoryMs":%s}}' \
        "$1" "$2" "$stolen" "$(json_text "$3")" "$store_keys" "$stop_ms" "$ready_ms" "$first_ms" "$all_ms")"
    stolen_all+=("$stolen")
}

# warming: whether any shard still brings values back into memory.
warming() { orlop --server "$address" stat | awk -F '\t' '/^shard[.][0-9]+[.]warming\t/ && $2 == "true" { found = 1 } END { exit !found }'; }

# The server is up; it goes down and comes back.
restart_orlop() {
    local round=$1 before first_value
    while warming; do pause_for 0.1; done
    before=$(now_us)
    stop
    stop_ms=$(ms_since "$before")
    drop_page_cache
    # The program that asks is no part of what is measured.
    orlop --version >/dev/null
    before=$(cpu_time)
    start "${all_cpus[@]}"
    ready_ms=$(ms_since "$begun")
    first_value=$(orlop --server "$address" get "$first_key" | wc -c) || fail "the first key was not read after the restart"
    first_ms=$(ms_since "$begun")
    while warming; do pause_for 0.02; done
    all_ms=$(ms_since "$begun")
    stolen=$(withheld "$before" "$(cpu_time)")
    ((first_value == 4096)) || fail "the first value has $first_value bytes after the restart, 4096 were written"
    record_restart "$round" orlop "orlopd --data DIR ${all_cpus[*]}"
}

# redis_ask WORD...: the first line of the answer of the Redis at $address.
redis_ask() {
    local answer=''
    exec 4<>"/dev/tcp/${address%:*}/${address##*:}"
    printf '%s\r\n' "$*" >&4
    IFS= read -r -t 60 -u 4 answer || fail "Redis does not answer '$*'"
    exec 4>&-
    printf '%s' "${answer%$'\r'}"
}

# redis_rewriting: whether Redis is rewriting its append-only file.
redis_rewriting() {
    local line rewriting=''
    exec 4<>"/dev/tcp/${address%:*}/${address##*:}"
    printf 'INFO persistence\r\n' >&4
    while [[ -z $rewriting ]] && IFS= read -r -t 60 -u 4 line; do
        case $line in
        aof_rewrite_in_progress:1* | aof_rewrite_scheduled:1*) rewriting=true ;;
        aof_last_rewrite_time_sec:*) rewriting=false ;;
        esac
    done
    exec 4>&-
    [[ -n $rewriting ]] || fail "Redis does not tell its persistence"
    $rewriting
}

restart_redis() {
    local round=$1 before
    before=$(now_us)
    peer_stop redis-always
    stop_ms=$(ms_since "$before")
    drop_page_cache
    before=$(cpu_time)
    begun=$(now_us)
    peer_start redis-always
    ready_ms=$(ms_since "$begun")
    [[ $(redis_ask GET "$first_key") == "\$4096" ]] || fail "Redis does not have the first value after the restart"
    first_ms=$(ms_since "$begun") all_ms=$ready_ms
    stolen=$(withheld "$before" "$(cpu_time)")
    [[ $(redis_ask DBSIZE) == ":$store_keys" ]] || fail "Redis has $(redis_ask DBSIZE) keys after the restart, $store_keys were written"
    record_restart "$round" redis-always "scripts/peers.sh start redis-always --dir DIR"
}

exp2() {
    local round with_redis=true
    store_keys=$((store_mib * 256))
    # Twice for orlop's dead bytes and spares, three times for Redis, which writes its file anew beside the old one.
    needs_room "$((store_mib * 5 + 1024))" exp2
    all_cpus=(--cache "$((store_mib * 5 / 4 + 256))MiB")
    step "exp2: $store_mib MiB into orlop"
    start "${all_cpus[@]}"
    fill --clients 8 --keys "$store_keys" --value-size 4096
    stop
    if peer_start redis-always; then
        step "exp2: $store_mib MiB into Redis"
        fill --system redis --clients 8 --in-flight 16 --keys "$store_keys" --value-size 4096
        while redis_rewriting; do pause_for 0.2; done
        redis_ask BGREWRITEAOF >/dev/null
        while redis_rewriting; do pause_for 0.2; done
        peer_stop redis-always
    else
        with_redis=false steps_all=$((steps_all - rounds - 1))
        leave_out exp2 redis-always
    fi
    for ((round = 1; round <= rounds; round++)); do
        step "exp2, round $round of $rounds: orlop restarts"
        start "${all_cpus[@]}"
        restart_orlop "$round"
        stop
        if $with_redis; then
            step "exp2, round $round of $rounds: Redis restarts"
            peer_start redis-always
            restart_redis "$round"
            peer_stop redis-always
        fi
    done
    rm -rf "$scratch/orlop" "$scratch/redis-always"
}

exp3() {
    local round load clients best calls without_gain
    # Number of clients at which each load's first round ended.
    local -A ended=()
    for ((round = 1; round <= rounds; round++)); do
        start "${one_shard[@]}"
        fill --clients 16 --keys "$keys" --value-size "$value_size"
        for load in read-only 50/50; do
            best=0 without_gain=0
            for ((clients = 1; clients <= ${ended[$load]:-$clients_max}; clients *= 2)); do
                step "exp3, round $round of $rounds: $clients clients, $load"
                load_of exp3 "$round" orlop "$load" --clients "$clients" --keys "$keys" --value-size "$value_size"
                calls=$(top_field callsPerSecond)
                without_gain=$((without_gain + 1))
                ! above "$calls" "$(awk -v b="$best" 'BEGIN { print b * 1.05 }')" || without_gain=0
                ! above "$calls" "$best" || best=$calls
                ((round > 1 || without_gain < 2)) || break
            done
            if [[ -z ${ended[$load]:-} ]]; then
                ((clients <= clients_max)) || clients=$((clients / 2))
                ended[$load]=$clients
                steps_all=$((steps_all - rounds * ($(doublings "$clients_max") - $(doublings "$clients"))))
            fi
        done
        stop
        rm -rf "$scratch/orlop"
    done
}

# What is asked of each system: load, clients, calls in flight.
peers_loads=("read-only 50 1" "read-only 50 16" "write-only 1 1" "write-only 50 1" "write-only 50 16")
peers() {
    local round system what load clients in_flight
    local -a same
    for ((round = 1; round <= rounds; round++)); do
        for system in "${systems[@]}"; do
            if [[ -n ${left_out[peers-$system]:-} ]]; then
                continue
            elif [[ $system == orlop ]]; then
                start "${one_shard[@]}"
                peer_settings="$(orlopd --version); orlopd --data DIR ${one_shard[*]}"
            elif ! peer_start "$system" --cpu "$server_cpu"; then
                leave_out peers "$system"
                steps_all=$((steps_all - rounds * ${#peers_loads[@]}))
                continue
            fi
            ((round > 1)) ||
                record peers "$(printf '{"system":"%s","settings":%s}' "$system" "$(json_text "$peer_settings")")"
            same=(--keys "$keys" --value-size "$value_size")
            # The embedded engines speak orlop's protocol.
            [[ $system =~ ^(orlop|redb|fjall)$ ]] || same+=(--system "${system%-always}")
            fill --clients 16 --in-flight 16 "${same[@]}"
            for what in "${peers_loads[@]}"; do
                read -r load clients in_flight <<<"$what"
                step "peers, round $round of $rounds: $system, $load, $clients x $in_flight"
                load_of peers "$round" "$system" "$load" --clients "$clients" --in-flight "$in_flight" "${same[@]}"
            done
            if [[ $system == orlop ]]; then stop; else peer_stop "$system"; fi
            rm -rf "${scratch:?}/$system"
        done
    done
}

# --- all of it ---

# How many numbers of clients there are from 1 to N.
doublings() { awk -v n="$1" 'BEGIN { for (c = 1; c <= n; c *= 2) d++; print d }'; }
declare -A steps=([exp1]=$((${#sizes[@]} * 2 * rounds)) [exp2]=$((rounds * 2 + 2))
    [exp3]=$(($(doublings "$clients_max") * 2 * rounds)) [peers]=$((${#systems[@]} * ${#peers_loads[@]} * rounds)))
for experiment in "${experiments[@]}"; do steps_all=$((steps_all + steps[$experiment])); done
needs_room 1024 'the baseline of the device'
baselines before
for experiment in "${experiments[@]}"; do
    "$experiment"
    baselines "after $experiment"
done

# about: the settings and the machine, as JSON.
about() {
    local text listed
    listed=$(for experiment in "${experiments[@]}"; do printf '"%s",' "$experiment"; done)
    printf '{"experiments":[%s],"quick":%s' "${listed%,}" "$quick"
    while IFS='|' read -r name text; do printf ',\n"%s":%s' "$name" "$(json_text "$text")"; done <<TEXTS
date|$(date -u +%F)
cpu|$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
kernel|Linux $(uname -r)
fileSystem|$(findmnt --noheadings --output FSTYPE --target "$scratch" | head -n 1)
commit|$(git describe --always --dirty 2>/dev/null || echo unknown)
command|$command_line
server|$(orlopd --version); orlopd --data DIR ${one_shard[*]}, values within --cache; in exp2 all CPUs
TEXTS
    printf ',\n"cpus":%s,"memoryBytes":%s,"serverCpu":%s,"loadCpu":%s' "$(nproc)" \
        "$(awk '/MemTotal/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)" "$server_cpu" "$load_cpu"
    printf ',\n"rounds":%s,"seconds":%s,"warmUpSeconds":%s,"keySize":%s' "$rounds" "$seconds" "$warm_up" "$key_size"
    printf ',\n"stolenMaxPercent":%s,"tries":%s,"stolenLeastPercent":%s,"stolenMostPercent":%s}\n' "$stolen_max" "$tries" \
        "$(printf '%s\n' "${stolen_all[@]}" | sort -g | head -n 1)" "$(printf '%s\n' "${stolen_all[@]}" | sort -g | tail -n 1)"
}
about >"$partial/about.json" || fail "cannot write about.json: is the disk full?"
orlop-bench report "$partial" >/dev/null || fail "no report was made of the results"

chmod 755 "$partial"
sync --file-system "$partial"
if [[ -z ${option[out]:-} ]]; then
    wanted=$out
    for ((number = 2; ; number++)); do [[ -e $out ]] || break; out=$wanted-$number; done
fi
mv --no-target-directory "$partial" "$out" || fail "cannot give the results their name, $out"
partial=''
printf '%s\n' "$out/report.html"
