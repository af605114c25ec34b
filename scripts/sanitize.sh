#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Tests under a sanitizer, in a build of its own below .build: docs/testing.md says which suites, and why not the others.
# usage: sanitize.sh address|thread|undefined [TARGET...]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
kind=${1:-}
shift || true
declare -A suites=(
    [address]="BlkifTests XenBusTests SettingsTests FormatsTests NBDTests QCOWEngineTests PluginKitTests BlockQueueTests XenLoopbackTests BlkfrontTests"
    [thread]="BlkifTests BlockQueueTests QCOWEngineTests PluginKitTests XenLoopbackTests BlkfrontTests"
    [undefined]="BlkifTests BlockQueueTests PluginKitTests XenLoopbackTests BlkfrontTests"
)
[[ -n ${suites[$kind]:-} ]] || { sed -n '4p' "$0" >&2; exit 64; }
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || read -ra targets <<<"${suites[$kind]}"
scratch=.build/$kind
logs=build/test-logs
mkdir -p "$logs" build/sanitize
# A plugin may leave the sanitizer's functions undefined: the program that loads it has them.
export XBB_SANITIZE=1 SWIFT_BACKTRACE=enable=no
export XBB_BUILD_DIR=$PWD/$scratch/debug XBB_STAGE_DIR=$PWD/build/debug
options=(--sanitize="$kind")
if [[ $kind == undefined ]]; then
    # Swift offers it on macOS only, and has clang's runtime here, too.
    tools=$(dirname "$(dirname "$(readlink -f "$(command -v swift)")")")
    runtime=$(find "$tools/lib/clang" -name "libclang_rt.ubsan_standalone-$(uname -m).a" | head -n 1)
    [[ -n $runtime ]] || { echo "FAILED undefined: this Swift has no runtime for it"; exit 1; }
    options=(-Xcc -fsanitize=undefined -Xlinker "$runtime")
fi
swift build --build-tests "${options[@]}" --scratch-path "$scratch" -j "$(nproc)" >"$logs/$kind-build.log" 2>&1 ||
    { tail -n 30 "$logs/$kind-build.log"; exit 1; }
preload=
case $kind in
thread)
    clang=$(dirname "$(readlink -f "$(command -v swift)")")/clang
    "$clang" -O1 -shared -fPIC -o build/sanitize/swift-mutex.so Tests/Sanitizers/swift-mutex.c &&
        "$clang" -O1 -shared -fPIC -o build/sanitize/xenstore-close.so Tests/Sanitizers/xenstore-close.c &&
        swiftc -O -sanitize=thread -swift-version 6 -o build/sanitize/mutex-probe Tests/Sanitizers/mutex-probe.swift || exit 1
    preload=$PWD/build/sanitize/swift-mutex.so:$PWD/build/sanitize/xenstore-close.so
    # That it sees a Mutex, and that it sees a race.
    LD_PRELOAD=$preload build/sanitize/mutex-probe >"$logs/thread-probe.log" 2>&1 ||
        { echo "FAILED thread: the sanitizer does not see Swift's Mutex"; exit 1; }
    LD_PRELOAD=$preload build/sanitize/mutex-probe race >"$logs/thread-race.log" 2>&1 &&
        { echo "FAILED thread: the sanitizer does not see a race"; exit 1; }
    export TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1:exitcode=66:suppressions=$PWD/Tests/Sanitizers/thread.supp
    ;;
address)
    # What lives as long as the process is no leak, and Swift's metadata is not freed.
    export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0
    ;;
undefined)
    grep -q __ubsan_handle "$scratch"/debug/CLinux.build/log.c.o ||
        { echo "FAILED undefined: C was compiled without the sanitizer"; exit 1; }
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=0
    ;;
esac
# Of suites whose other tests have one thread and take hours under it, those with several.
declare -A threaded=([QCOWEngineTests]='queuesOnThreads|queuesShareOneState|writesIntoOneClusterShareASync|thePausedDiskIsInItsFile')
status=0
for target in "${targets[@]}"; do
    log=$logs/$kind-$target.log
    started=$SECONDS
    tests="^$target\\."
    [[ $kind != thread || -z ${threaded[$target]:-} ]] || tests="^$target\\..*(${threaded[$target]})"
    LD_PRELOAD=$preload timeout --kill-after=10 3000 "$scratch/debug/xbbPackageTests.xctest" --testing-library swift-testing \
        --no-parallel --filter "$tests" >"$log" 2>&1
    result=$?
    reports=$(grep -cE '^(WARNING: ThreadSanitizer|==[0-9]+==ERROR: AddressSanitizer)|runtime error: ' "$log")
    good=$(grep -cE '^✔ Test [^r]' "$log")
    if [[ $result -ne 0 || $reports -gt 0 || $good -eq 0 ]]; then
        echo "FAILED $kind $target: exit status $result, $reports reports, $good tests passed in $((SECONDS - started)) s"
        grep -E '^✘ Test .*(recorded|failed)|^(WARNING: ThreadSan|SUMMARY:)|runtime error: ' "$log" | cut -c1-300 | sort | uniq -c | sort -rn | head -20
        status=1
    else
        echo "ok $kind $target: $good tests, 0 reports in $((SECONDS - started)) s"
    fi
done
exit "$status"
