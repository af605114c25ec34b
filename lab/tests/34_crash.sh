# SPDX-License-Identifier: BSD-2-Clause
# The guest's kernel crashes in the middle of I/O: all that it used is given back.
truncate -s 64M "$images/a.img"
guest_create crash "$(disk xvda "raw:$images/a.img")"
domain=$(domid crash)
guest_start crash busy "fio --name=a --filename=/dev/xvda --rw=randrw --bsrange=4k-256k --size=64M --direct=1 \
    --ioengine=libaio --iodepth=16 --time_based --runtime=600 --minimal"
await 60 "I/O" eval "xbbctl stats $domain xvda --json | jq -e '.totals.reqs_completed > 50'"
guest_start crash panic 'echo c >/proc/sysrq-trigger'
await 120 "the guest's end" eval '! xl domid crash'
grep -aq 'sysrq triggered crash' "$consoles/guest-crash.log" || fail "the guest ended without a crash"
