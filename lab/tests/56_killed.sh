# SPDX-License-Identifier: BSD-2-Clause
# Workers are killed again and again under verified I/O of a real blkfront, with rings of 1 and of 4 pages, xbbd with them
# now and then: the guest sees a delay and no error, and nothing is left. XEN_LAB_MODE is one of lab/lib/modes.sh.
# limit: 7200
. /host/lib/modes.sh
mode=${XEN_LAB_MODE:-usual}
set_mode "$mode"
truncate -s 64M "$images/a.img"
options=(--restart-limit 1000 "${mode_options[@]}")
xbbd_stop
xbbd_start "${options[@]}"
state() { xenstore-read "/local/domain/0/backend/vbd/$(domid killed)/$1/state"; }
devices=([51712]=xvda [51728]=xvdb)
for order in 0 2; do
    # Linux keeps a page for each segment of each request of each queue where pages stay mapped; with rings of four pages 512 MiB for a disk.
    [[ $mode != all || $order -eq 0 ]] || mode_memory=1700
    guest_memory=$mode_memory guest_processors=$mode_processors guest_extra="xen_blkfront.max_ring_page_order=$order $mode_line" \
        guest_create killed "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
    domain=$(domid killed)
    for disk in xvda xvdb; do
        assert_mode killed "$disk"
        guest_fio_start killed "$disk" "$mode_load"
    done
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
    note "mode $mode, order $order: $kills kills in $((round - 1)) rounds, $with_xbbd of them with xbbd"
    for disk in 51712 51728; do [[ $(state "$disk") == 4 ]] || fail "$disk is in state $(state "$disk")"; done
    for disk in xvda xvdb; do
        guest_fio_end killed "$disk"
        assert_mode killed "$disk"
    done
    guest killed 'dmesg | grep -iE "I/O error|xvd.*error"' && fail "the guest's kernel saw errors"
    note "order $order: $(grep -c 'requests in flight in plugin' /var/log/xbbd.log) workers went on with requests in flight"
    guest_shutdown killed
    assert_nothing_left
done
xbbd_stop
xbbd_start
