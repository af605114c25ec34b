#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Coverage-guided fuzzing of the product's own modules by libFuzzer, with AddressSanitizer: Tests/Fuzz, docs/testing.md.
#
#   fuzz.sh run TARGET|all SECONDS    fuzz; what is new goes to build/fuzz/corpus, inputs with a fault to build/fuzz/faults
#   fuzz.sh replay [TARGET...]        every input of the tree once; the last line counts them, and the status is 0 if none has a fault
#   fuzz.sh check SECONDS             replay, then fuzz each target for so long; for scripts/test.sh
#   fuzz.sh keep TARGET|all           the smallest inputs that reach all edges that build/fuzz/corpus reaches, into the tree
#   fuzz.sh coverage [TARGET...]      lines of the product's modules that the inputs of build/fuzz/corpus and the tree reach
#   fuzz.sh sum                       executions of each target until now, by build/fuzz/tally.tsv
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
package=$root/Tests/Fuzz
scratch=${XBB_FUZZ_SCRATCH:-$root/build/fuzz/package}
# SANITIZE=none: without AddressSanitizer, in a build of its own.
if [[ ${SANITIZE:-address} == none ]]; then
    export XBB_FUZZ_SANITIZE=none
    scratch=$scratch-none
fi
grown=$root/build/fuzz/corpus
faults=$root/build/fuzz/faults
tally=$root/build/fuzz/tally.tsv
# The program of each target, and the longest input that is made for it.
declare -A program=(
    [slot]=fuzz-ring [ring]=fuzz-ring
    [engine]=fuzz-queue [session]=fuzz-queue [journal]=fuzz-queue
    [keys]=fuzz-store [offer]=fuzz-store [negotiation]=fuzz-store [broker]=fuzz-store
    [qcow-read]=fuzz-image [qcow-write]=fuzz-image [vhd]=fuzz-image
    [nbd]=fuzz-nbd [nbd-scan]=fuzz-nbd [nbd-uri]=fuzz-nbd
    [json]=fuzz-control [request]=fuzz-control [settings]=fuzz-control [files]=fuzz-control [metrics]=fuzz-control
)
declare -A longest=(
    [slot]=400 [ring]=1024 [engine]=2048 [session]=2048 [journal]=512 [keys]=1024 [offer]=256 [negotiation]=256
    [broker]=2048 [qcow-read]=16384 [qcow-write]=512 [vhd]=2048 [nbd]=6000 [nbd-scan]=600 [nbd-uri]=300 [json]=1024 [request]=512 [settings]=2048 [files]=2048 [metrics]=4096
)
targets=(slot ring engine session journal keys offer negotiation broker qcow-read qcow-write vhd nbd nbd-scan nbd-uri json request settings files metrics)

# A crash must end the program, not wait for a debugger.
export SWIFT_BACKTRACE=enable=no

# Builds the programs of targets, "all" or some, into the directory `scratch`, with the compiler's options `build_options`.
build_options=()
build() {
    local runtime name
    # A long campaign goes on with its programs while the tree changes.
    [[ -z ${XBB_FUZZ_BUILT:-} ]] || return 0
    runtime=$(dirname "$(dirname "$(readlink -f "$(command -v swift)")")")/lib/clang
    runtime=$(find "$runtime" -name "libclang_rt.fuzzer_no_main-$(uname -m).a" | head -n 1)
    [[ -n $runtime ]] || { echo "fuzz: this Swift has no libFuzzer" >&2; exit 1; }
    export XBB_FUZZ_RUNTIME=$runtime
    local words=(swift build --package-path "$package" --scratch-path "$scratch" -c release -j "${JOBS:-$(nproc)}" "${build_options[@]}")
    for name in $(programs "$@"); do
        "${words[@]}" --product "$name" >"$root/build/fuzz/build.log" 2>&1 || {
            echo "FAILED fuzz: $name does not build"
            tail -n 40 "$root/build/fuzz/build.log"
            exit 1
        }
    done
}

# The programs of targets, each once.
programs() { for target in $(names "$@"); do echo "${program[$target]}"; done | sort -u; }

# Runs libFuzzer on a target; further words are its options and directories.
fuzz() {
    local target=$1 dictionary=$package/Dictionaries/$1
    shift
    local options=(-max_len="${longest[$target]}" -timeout=60 -rss_limit_mb=3000 -malloc_limit_mb=1024
        -artifact_prefix="$faults/$target-" -print_final_stats=1)
    [[ -e $dictionary ]] && options+=(-dict="$dictionary")
    XBB_FUZZ_TARGET=$target "$scratch/release/${program[$target]}" "${options[@]}" "$@"
}

names() {
    if [[ $# -eq 0 || $1 == all ]]; then printf '%s\n' "${targets[@]}"; else printf '%s\n' "$@"; fi
}

check_names() {
    local target
    for target in $(names "$@"); do
        [[ -n ${program[$target]:-} ]] || { echo "fuzz: no target $target; there are ${targets[*]}" >&2; exit 64; }
    done
}

corpus() { echo "$package/Corpus/$1"; }

# The end of a run's log: what failed, or the figures.
report() {
    local log=$1 name=$2 result=$3
    if [[ $result -ne 0 ]]; then
        echo "FAILED fuzz $name"
        tail -n 40 "$log" | cut -c1-300
        return 1
    fi
    echo "ok fuzz $name: $(executions "$log") executions, $(grep -aoE 'cov: [0-9]+' "$log" | tail -n 1 || true)"
}

executions() { grep -aoE 'number_of_executed_units: *[0-9]+' "$1" | grep -oE '[0-9]+$' || echo 0; }

one() {
    local target=$1 log=$root/build/fuzz/$1.log result=0
    shift
    fuzz "$target" "$@" >"$log" 2>&1 || result=$?
    # What ran: for `sum`.
    [[ -s $tally ]] || printf 'target\tsanitizer\texecutions\tstatus\n' >"$tally"
    printf '%s\t%s\t%s\t%s\n' "$target" "${SANITIZE:-address}" "$(executions "$log")" "$result" >>"$tally"
    report "$log" "$target" "$result"
}

# Runs each kept input of a target, whole and whatever the others do, and adds to `inputs` and `broken`.
inputs=0
broken=0
replay() {
    local target=$1 log=$root/build/fuzz/$1-replay.log result seen failed=0 files
    mapfile -t files < <(find "$(corpus "$target")" -type f | sort)
    local all=${#files[@]}
    while [[ ${#files[@]} -gt 0 ]]; do
        result=0
        fuzz "$target" "${files[@]}" >"$log" 2>&1 || result=$?
        # libFuzzer names an input before and after it runs it, and ends at the first fault.
        seen=$(grep -ac '^Running: ' "$log") || true
        if [[ $result -eq 0 && $seen -eq ${#files[@]} ]]; then break; fi
        failed=$((failed + 1))
        [[ $seen -gt 0 ]] || seen=1
        echo "FAILED fuzz $target ${files[seen - 1]#"$root/"}"
        awk '/^Running: / { text = ""; next } { text = text $0 "\n" } END { printf "%s", text }' "$log" | head -n 30 | cut -c1-300
        files=("${files[@]:seen}")
    done
    inputs=$((inputs + all))
    broken=$((broken + failed))
    if [[ $all -eq 0 ]]; then
        echo "FAILED fuzz $target: no kept inputs"
        return 1
    fi
    [[ $failed -eq 0 ]] || return 1
    echo "ok fuzz $target: $all kept inputs"
}

mkdir -p build/fuzz "$faults"
mode=${1:-}
shift || true
status=0
case $mode in
run)
    check_names "${1:-all}"
    build "${1:-all}"
    for target in $(names "${1:-all}"); do
        mkdir -p "$grown/$target"
        one "$target" -max_total_time="${2:-60}" -reload=0 "$grown/$target" "$(corpus "$target")" || status=1
    done
    ;;
replay)
    check_names "$@"
    build "$@"
    for target in $(names "$@"); do replay "$target" || status=1; done
    echo "replay: $inputs inputs, $broken with a fault"
    ;;
check)
    build
    for target in "${targets[@]}"; do replay "$target" || status=1; done
    echo "replay: $inputs inputs, $broken with a fault"
    for target in "${targets[@]}"; do
        work=$(mktemp -d)
        one "$target" -max_total_time="${1:-2}" -reload=0 "$work" "$(corpus "$target")" || status=1
        rm -r "$work"
    done
    ;;
keep)
    check_names "${1:-all}"
    build "${1:-all}"
    for target in $(names "${1:-all}"); do
        [[ -d $grown/$target ]] || continue
        new=$(mktemp -d)
        fuzz "$target" -merge=1 -use_counters=0 "$new" "$(corpus "$target")" "$grown/$target" >"build/fuzz/$target.log" 2>&1
        # Faults that were found stay, whatever they reach, and images of QEMU, which others read, too.
        find "$(corpus "$target")" -type f ! -name 'fault-*' ! -name 'image-*' -delete
        # Small ones first, as many as there is room for.
        find "$new" -type f -printf '%s %p\n' | sort -n | awk -v room=60000 '{ room -= $1; if (room > 0) print $2 }' |
            xargs -r mv -t "$(corpus "$target")"
        rm -r "$new"
        echo "$target: $(find "$(corpus "$target")" -type f | wc -l) inputs, $(du -sb "$(corpus "$target")" | cut -f1) bytes"
    done
    ;;
coverage)
    check_names "$@"
    scratch=$root/build/fuzz/coverage
    build_options=(-Xswiftc -profile-generate -Xswiftc -profile-coverage-mapping)
    build "$@"
    rm -f build/fuzz/*.profraw
    for target in $(names "$@"); do
        mkdir -p "$grown/$target"
        LLVM_PROFILE_FILE=$root/build/fuzz/$target.profraw one "$target" -runs=0 "$grown/$target" "$(corpus "$target")" || status=1
    done
    tools=$(dirname "$(readlink -f "$(command -v swift)")")
    "$tools/llvm-profdata" merge -o build/fuzz/all.profdata build/fuzz/*.profraw
    objects=()
    for name in $(programs "$@"); do objects+=(-object "$scratch/release/$name"); done
    "$tools/llvm-cov" report "${objects[@]}" -instr-profile build/fuzz/all.profdata \
        -ignore-filename-regex='Fuzz/(Kit|Driver|Ring|Queue|Store|Image|Control)/|Tests/[A-Z][A-Za-z]*Tests/' >build/fuzz/coverage.txt
    # Lines by module, the folder behind what all paths have in common: the fifth to the third last columns are those of lines.
    awk '$1 ~ /\.swift$/ { split($1, part, "/"); name = part[1]
        total[name] += $8; missed[name] += $9 }
        END { for (name in total) printf "%s: %d of %d lines, %.1f %%\n", name, total[name] - missed[name], total[name], 100 * (total[name] - missed[name]) / total[name] }' \
        build/fuzz/coverage.txt | sort
    ;;
sum)
    awk -F '\t' 'NR > 1 { n[$1] += $3; all += $3; if ($4 != 0) bad[$1]++ }
        END { for (name in n) printf "%s: %d executions, %d runs with a fault\n", name, n[name], bad[name]; print "all: " all + 0 " executions" }' \
        "$tally" | sort
    ;;
*)
    sed -n '5,11p' "$0" >&2
    exit 64
    ;;
esac
exit "$status"
