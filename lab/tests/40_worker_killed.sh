# SPDX-License-Identifier: BSD-2-Clause
# The worker of one disk is killed: the disk of the other worker goes on, and this disk can be attached anew.
# limit: 900
truncate -s 64M "$images"/{a,b}.img
guest_create worker "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$images/b.img")"
guest_fio_start worker xvda
victim=$(xbbctl list --json | jq -r 'first(.. | objects | select(.device? == "xvdb") | .pid)')
note "killing worker $victim of xvdb"
kill -KILL "$victim"
await 30 "another worker" eval '[[ $(workers) -eq 2 ]]'
before=$(completed worker xvda)
await 120 "I/O on the other disk" completed_more worker xvda "$before"

xl block-detach --force worker xvdb
await 60 "the end of the disk" eval '[[ $(workers) -eq 1 && $(vbd_nodes) -eq 1 ]]'
xl block-attach worker "$(disk xvdb "raw:$images/b.img")"
guest worker 'i=0; until [ "$(blockdev --getsize64 /dev/xvdb)" = 67108864 ]; do
    i=$((i + 1)); [ $i -lt 300 ] || exit 1; sleep 0.2; done
    dd if=/dev/urandom of=/dev/xvdb bs=64k count=16 oflag=direct' || fail "the disk did not come back"
guest_fio_end worker xvda
guest_shutdown worker
