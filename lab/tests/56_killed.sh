# SPDX-License-Identifier: BSD-2-Clause
# Workers are killed again and again under verified I/O of a real blkfront, with rings of 1 and of 4 pages, xbbd with them
# now and then: the guest sees a delay and no error, and nothing is left.
# limit: 1800
truncate -s 64M "$images/a.img"
xbbd_stop
xbbd_start --restart-limit 1000
state() { xenstore-read "/local/domain/0/backend/vbd/$(domid killed)/$1/state"; }
pid_of() { xbbctl list --json | jq -r --arg disk "$1" 'first(.. | objects | select(.device? == $disk) | .pid // empty)'; }
for order in 0 2; do
    guest_extra="xen_blkfront.max_ring_page_order=$order" \
        guest_create killed "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
    guest_fio_start killed xvda
    guest_fio_start killed xvdb
    for round in $(seq 20); do
        victim=xvda
        ((round % 2)) || victim=xvdb
        pid=$(pid_of "$victim")
        [[ -n $pid ]] || fail "$victim has no worker in round $round"
        if ((round % 7 == 0)); then
            kill -KILL "$pid" "$(pidof xbbd)"
            await 30 "the end of xbbd" eval '! pidof xbbd'
            xbbd_start --restart-limit 1000
        else
            kill -KILL "$pid"
        fi
        await 60 "another worker of $victim" eval "[[ -n \$(pid_of $victim) && \$(pid_of $victim) != $pid ]]"
        # A few requests, and none: the next kill may come while those before are done again.
        ((round % 3)) || await 60 "I/O on $victim after kill $round" completed_more killed "$victim" 5
    done
    for disk in 51712 51728; do [[ $(state "$disk") == 4 ]] || fail "$disk is in state $(state "$disk")"; done
    guest_fio_end killed xvda
    guest_fio_end killed xvdb
    guest killed 'dmesg | grep -iE "I/O error|xvd.*error"' && fail "the guest's kernel saw errors"
    note "order $order: $(grep -c 'requests in flight in plugin' /var/log/xbbd.log) workers went on with requests in flight"
    guest_shutdown killed
    assert_nothing_left
done
xbbd_stop
xbbd_start
