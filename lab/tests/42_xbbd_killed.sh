# SPDX-License-Identifier: BSD-2-Clause
# xbbd is stopped, and killed, and started again under I/O: the guest notices nothing, and the disk is still managed.
# limit: 900
truncate -s 64M "$images"/{a,b}.img
guest_create super "$(disk xvda "raw:$images/a.img")"
worker=$(worker_pids)
guest_fio_start super xvda
xbbd_stop
xbbd_start
kill -KILL "$(pidof xbbd)"
await 30 "the end of xbbd" eval '! pidof xbbd'
xbbd_start
[[ $(worker_pids) == "$worker" ]] || fail "the worker was $worker and is $(worker_pids)"
xbbctl list | grep -q adopted || fail "xbbd did not adopt the worker"
before=$(completed super xvda)
await 120 "I/O afterwards" completed_more super xvda "$before"
guest_fio_end super xvda
xl block-attach super "$(disk xvdb "raw:$images/b.img")"
await 30 "a second worker" eval '[[ $(workers) -eq 2 ]]'
xl block-detach super xvdb
xl block-detach super xvda
await 30 "the workers' end" eval '[[ $(workers) -eq 0 ]]'
guest_shutdown super
