#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# The tests that take minutes, on what `make build build-release` built: a thousand kills with upgrades between the two builds, 300 of
# workers on an image of Ceph, 200 rounds of attach and detach, 300 disks, a million lines of a guest's noise, all kinds of QCOW images
# and all hostile ones, the qcow2 engine under power cuts, kills and faults, and a minute of each fuzz target; as root, the commands
# of docs/operating.md on the packages of `make deb`. Their
# time is in docs/benchmarks.md. One of them, as root, sets the sysctl fs.aio-max-nr to 64 for some seconds.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export XBB_LONG=1 XBB_BUILD_DIR=$PWD/.build/debug XBB_STAGE_DIR=$PWD/build/debug SWIFT_BACKTRACE=enable=no
started=$SECONDS
log=build/test-logs/long.log
mkdir -p build/test-logs
scripts/kill-test.sh "${XBB_KILLS:-1000}" both 200 | tee build/test-logs/kills.log
kills=${PIPESTATUS[0]}
scripts/kill-test.sh 300 release 1000 rbd | tee build/test-logs/kills-rbd.log
[[ ${PIPESTATUS[0]} -eq 0 ]] || kills=1
timeout --kill-after=10 7200 swift test --skip-build --no-parallel \
    --filter 'QCOWCorpusTests|QCOWWriteTests|QCOWWritingTests|QCOWStorageTests|theQCOWPluginPasses|QCOWEngineTests|ManyDisksTests|afterDetachTheStorageIsFree|theNoiseOfAGuestHarmsNoOtherDisk' >"$log" 2>&1
result=$?
grep -E '^(qcow corpus|qcow2 written.*|hostile.*|rounds|noise|many disks|kills|power cuts.*|planted.*): |^✘' "$log" | cut -c1-400
grep -qE '^✔ Test run with [1-9]' "$log" || result=1
[[ $kills -eq 0 ]] || result=1
scripts/fuzz.sh check "${XBB_FUZZ_SECONDS:-60}" >build/test-logs/fuzz.log 2>&1 || result=1
grep -E '^(ok|FAILED|replay:) ' build/test-logs/fuzz.log
if [[ $(id -u) -eq 0 ]]; then
    scripts/deb-test.sh walk >build/test-logs/walk.log 2>&1 || { cat build/test-logs/walk.log; result=1; }
    tail -n 1 build/test-logs/walk.log
else
    echo "test-walk: left out, as only root can make a root file system"
fi
echo "test-long: $([[ $result -eq 0 ]] && echo passed || echo FAILED) in $((SECONDS - started)) s"
exit "$result"
