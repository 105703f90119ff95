#!/usr/bin/env bash
# The random tests of durability, round after round with new seeds, for as long as you like: the engine on a simulated
# disk, with one shard and with ever another number of them (T1), power cuts on a real file system (T3,
# scripts/powercut.sh), kill -9 of the real server (T5). The first
# failure ends it; its output, its seed and its directory are kept. At the end, however it comes, it prints the totals.
#
#   scripts/soak.sh MINUTES
#
# Each round gives each of the four about a minute; they run one after the other. T3 says SKIPPED where it cannot run.
# Exit codes: 0 nothing was lost, 1 a test failed, 2 wrong usage, 3 something else went wrong, 128 + signal when
# interrupted (the totals are of the part that ran).
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

# What each of the four may take in a round, and about how much it does in a second.
share_seconds=60
cuts_per_second=8
kills_per_second=3

say() { printf 'soak: %s\n' "$*" >&2; }
fail() { say "$1"; exit "${2:-3}"; }

case ${1:-} in
    --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    '') fail "say for how many minutes; see --help" 2 ;;
esac
if (($# != 1)) || ! [[ $1 =~ ^[0-9]{1,5}$ ]] || ((10#$1 == 0)); then
    fail "'$*' is not a number of minutes from 1 to 99999; see --help" 2
fi

scratch=$(mktemp -d)
child='' begun='' failed=''
rounds=0 universes=0 crashes=0 confirmed=0 changes=0 change_crashes=0 change_acks=0 cuts=0 cut_acks=0 kills=0 kill_acks=0 skipped=0
verdict() {
    if [[ $failed = "$1" ]]; then
        printf 'and a FAILURE, see above'
    else
        printf 'lost 0'
    fi
}
totals() {
    printf 'soak: %d whole rounds in %d s\n' "$rounds" $((SECONDS - begun))
    printf 'T1 simulation: %d universes, %d crashes, %d acknowledged operations checked, %s\n' \
        "$universes" "$crashes" "$confirmed" "$(verdict simulation)"
    printf 'T1 shard counts: %d changes, %d crashes, %d acknowledged writes, %s\n' \
        "$changes" "$change_crashes" "$change_acks" "$(verdict migration)"
    printf 'T3 power cuts: %d crash points mounted, %d acknowledgements checked, %s%s\n' \
        "$cuts" "$cut_acks" "$(verdict powercut)" "$( ((skipped == 0)) || printf ' (SKIPPED %d times)' "$skipped")"
    printf 'T5 kill -9:    %d kills, %d acknowledged writes verified, %s\n' "$kills" "$kill_acks" "$(verdict kills)"
}
# Called by the trap below.
# shellcheck disable=SC2317
clean_up() {
    local code=$?
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    [[ -z $begun ]] || totals
    rm -rf "$scratch"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a test with its output in $scratch/NAME. If it fails, keeps that and what the test kept, and ends.
run() {
    local name=$1 code=0 kept directory
    shift
    # Not through cargo, which would leave the test behind when it is asked to end.
    env --unset=ORLOP_SEED "$@" >"$scratch/$name" 2>&1 &
    child=$!
    wait "$child" || code=$?
    child=''
    ((code != 0)) || return 0
    failed=$name
    kept=$target/soak-failed-$(date +%Y%m%d-%H%M%S)
    mkdir -p "$kept"
    cp "$scratch/$name" "$kept/output-of-$name"
    while read -r directory; do
        [[ ! -d $directory ]] || mv "$directory" "$kept/"
    done < <(sed -nE 's/^kept: //p; s/.*; kept in ([^,]*),.*/\1/p' "$scratch/$name")
    tail -n 40 "$scratch/$name" >&2
    say "seeds: $(grep -oE '(ORLOP_SEED=|--seed |seed )[0-9]+' "$scratch/$name" | sort -u | head -n 5 | paste -sd ' ')"
    fail "FAILED: $name (exit code $code) in round $((rounds + 1)); output and directories are in $kept" 1
}

# Makes FIGURE the number between two texts in the output of a test; that it is there makes a total a total.
figure() {
    FIGURE=$(sed -nE "s/.*$2([0-9]+)$3.*/\1/p" "$scratch/$1" | head -n 1)
    [[ -n $FIGURE ]] || fail "the output of $1 has no figure '$2N$3': $(tail -n 5 "$scratch/$1")"
}

say "building"
# Where a test's binary is.
executable() {
    local path
    path=$(cargo test --locked --no-run "$@" 2>&1 | tee /dev/stderr | sed -nE 's/^ *Executable .*\((.*)\)$/\1/p')
    [[ -x $path ]] || fail "cargo test --no-run $* did not say where the test is"
    realpath "$path"
}
engine=$(executable --lib)
server=$(executable --test it)
cargo build --release --locked --package orlop --package orlop-bench

begun=$SECONDS
end=$((begun + 10#$1 * 60))
while :; do
    left=$((end - SECONDS))
    ((left > 0)) || break
    share=$((left < 4 * share_seconds ? (left + 3) / 4 : share_seconds))
    export ORLOP_SIM_SECONDS=$share ORLOP_KILLS=$((share * kills_per_second))

    run simulation "$engine" the_engine_keeps_its_promises_on_a_disk_that_does_not --nocapture
    figure simulation 'universes: ' ','
    universes=$((universes + FIGURE))
    figure simulation 'power_cuts: ' ','
    crashes=$((crashes + FIGURE))
    figure simulation ' kills: ' ','
    crashes=$((crashes + FIGURE))
    figure simulation 'confirmed: ' ','
    confirmed=$((confirmed + FIGURE))

    run migration "$engine" nothing_is_lost_and_nothing_returns_however_often_the_number_of_shards_changes --nocapture
    figure migration ' changes: ' ','
    changes=$((changes + FIGURE))
    figure migration ' crashes: ' ','
    change_crashes=$((change_crashes + FIGURE))
    figure migration 'acknowledged: ' ','
    change_acks=$((change_acks + FIGURE))

    run powercut scripts/powercut.sh --points $((share * cuts_per_second + 1))
    if grep -q '^\*\*\* SKIPPED' "$scratch/powercut"; then
        skipped=$((skipped + 1))
        ((skipped > 1)) || grep '^\*\*\* SKIPPED' "$scratch/powercut" >&2
    else
        figure powercut 'crash points mounted ' ' of'
        cuts=$((cuts + FIGURE))
        figure powercut 'acknowledgements checked ' ','
        cut_acks=$((cut_acks + FIGURE))
    fi

    run kills "$server" every_acknowledged_write_survives_sigkill --nocapture
    figure kills ': ' ' kills'
    kills=$((kills + FIGURE))
    figure kills 'number of shards, ' ' acknowledged writes verified'
    kill_acks=$((kill_acks + FIGURE))

    rounds=$((rounds + 1))
    say "round $rounds: $crashes simulated crashes, $cuts power cuts, $kills kills, lost 0"
done
say "nothing lost"
