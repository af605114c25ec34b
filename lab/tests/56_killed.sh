# SPDX-License-Identifier: BSD-2-Clause
# Workers are killed again and again under verified I/O of a real blkfront, with rings of 1 and of 4 pages, xbbd with them
# now and then: the guest sees a delay and no error, and nothing is left. XEN_LAB_MODE says what guest and workers make use of: `usual`,
# `queues` (four queues, requests of 1 MiB), `persistent` (the same, with pages that stay mapped).
# limit: 5400
truncate -s 64M "$images/a.img"
options=(--restart-limit 1000) load="" mode_line="" processors=1 memory=256
case ${XEN_LAB_MODE:-usual} in
usual) ;;
queues | persistent)
    options+=(--max-queues 4 --max-indirect-segments 256)
    mode_line="xen_blkfront.max_queues=4 xen_blkfront.max_indirect_segments=256"
    # Four jobs, as a queue is one processor's; small and large requests.
    load="--numjobs=4 --offset_increment=8M --bsrange=4k-1M --group_reporting"
    processors=4 memory=384
    # Linux keeps a page for each segment of each request of each queue where pages stay mapped: 128 MiB for a disk here.
    [[ $XEN_LAB_MODE != persistent ]] || { options+=(--persistent-grants on) memory=896; }
    ;;
*) fail "no mode $XEN_LAB_MODE" ;;
esac
xbbd_stop
xbbd_start "${options[@]}"
state() { xenstore-read "/local/domain/0/backend/vbd/$(domid killed)/$1/state"; }
devices=([51712]=xvda [51728]=xvdb)
for order in 0 2; do
    guest_memory=$memory guest_processors=$processors guest_extra="xen_blkfront.max_ring_page_order=$order $mode_line" \
        guest_create killed "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
    domain=$(domid killed)
    guest_fio_start killed xvda "$load"
    guest_fio_start killed xvdb "$load"
    kills=0 with_xbbd=0
    for ((round = 1; kills < ${XEN_LAB_KILLS:-100}; round++)); do
        victims=(51712)
        ((round % 2)) || victims=(51728)
        ((round % 5)) || victims=(51712 51728)
        pids=()
        for device in "${victims[@]}"; do
            pids[device]=$(pid_of "$domain" "$device") || fail "${devices[device]} has no worker in round $round"
        done
        if ((round % 7 == 0)); then
            kill -KILL "${pids[@]}" "$(pidof xbbd)"
            await 30 "the end of xbbd" eval '! pidof xbbd'
            xbbd_start "${options[@]}"
            with_xbbd=$((with_xbbd + 1))
        else
            kill -KILL "${pids[@]}"
        fi
        kills=$((kills + ${#pids[@]}))
        for device in "${victims[@]}"; do
            await 60 "another worker of ${devices[device]}" another_worker "$domain" "$device" "${pids[device]}"
        done
        # A few requests, and none: the next kill may come while those before are done again.
        ((round % 4)) || await 60 "I/O on ${devices[device]} after kill $kills" completed_more killed "${devices[device]}" 5
    done
    note "${XEN_LAB_MODE:-usual}, order $order: $kills kills in $((round - 1)) rounds, $with_xbbd of them with xbbd"
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
