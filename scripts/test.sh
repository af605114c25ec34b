#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Runs all tests of what `make build` built, one test target after the other, and counts them at the end.
# A target that does not end within its time has failed.
# "authors-test" is scripts/authors-test.sh, "models" is scripts/models.py, "fuzz" is scripts/fuzz.sh.
# usage: test.sh [TARGET...]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# Where tests find the products: as they were built, and as they are laid out for use.
export XBB_BUILD_DIR=$PWD/.build/debug XBB_STAGE_DIR=$PWD/build/debug
# A crash must end a test run, not wait for a debugger.
export SWIFT_BACKTRACE=enable=no
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] ||
    targets=(SettingsTests BlkifTests XenBusTests BlockQueueTests FormatsTests NBDTests NBDFenceTests QCOWEngineTests PluginKitTests PluginTests
        XenLoopbackTests BlkfrontTests ControlTests EndToEndTests
        authors-test models)
limit=${XBB_TEST_LIMIT:-2100}
passed=0
failed=0
logs=build/test-logs
mkdir -p "$logs"
for target in "${targets[@]}"; do
    log=$logs/$target.log
    started=$SECONDS
    if [[ $target == authors-test || $target == models || $target == fuzz ]]; then
        case $target in
        authors-test) script=(scripts/authors-test.sh) ;;
        models) script=(scripts/models.py) ;;
        fuzz) script=(scripts/fuzz.sh check "${XBB_FUZZ_SECONDS:-1}") ;;
        esac
        result=0
        "${script[@]}" >"$log" 2>&1 || result=$?
        good=$(grep -c '^ok ' "$log")
        bad=$(grep -c '^FAILED ' "$log")
        [[ $good -gt 0 && ($result -eq 0 || $bad -gt 0) ]] || bad=$((bad + 1))
        sed -n '/^FAILED /,/^ok /p' "$log" | cut -c1-400
        passed=$((passed + good))
        failed=$((failed + bad))
        echo "$target: $good passed, $bad failed in $((SECONDS - started)) s"
        continue
    fi
    timeout --kill-after=10 "$limit" \
        swift test --skip-build --no-parallel --filter "^$target\\." >"$log" 2>&1
    result=$?
    # The line that closes a run has the shape of a test's.
    good=$(grep -vE '^[^ ]+ Test run with' "$log" | grep -cE '^✔ Test .* passed after [0-9.]+ seconds' || true)
    bad=$(grep -vE '^[^ ]+ Test run with' "$log" | grep -cE '^✘ Test .* failed after [0-9.]+ seconds' || true)
    if [[ $result -ne 0 && $bad -eq 0 ]] || [[ $good -eq 0 ]]; then
        bad=$((bad + 1))
        echo "$target: did not end well (exit status $result)"
        tail -15 "$log"
    fi
    grep -vE '^[^ ]+ Test run with' "$log" | grep -E '^✘ Test .*(recorded an issue|failed after [0-9.]+ seconds)' | cut -c1-400
    passed=$((passed + good))
    failed=$((failed + bad))
    echo "$target: $good passed, $bad failed in $((SECONDS - started)) s"
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
