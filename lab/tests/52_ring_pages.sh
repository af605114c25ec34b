# SPDX-License-Identifier: BSD-2-Clause
# Rings of 2 and 16 pages, as the guest's module parameter asks.
# limit: 1200
truncate -s 64M "$images/a.img"
for order in 1 4; do
    guest_extra="xen_blkfront.max_ring_page_order=$order" guest_create ring "$(disk xvda "raw:$images/a.img")"
    grep -q "$((1 << order)) ring pages" /var/log/xbbd.log || fail "no ring of $((1 << order)) pages: $(tail -3 /var/log/xbbd.log)"
    guest ring "fio --name=a --filename=/dev/xvda --rw=randwrite --bsrange=4k-128k --size=32M --direct=1 \
        --ioengine=libaio --iodepth=128 --verify=crc32c --verify_fatal=1 --minimal" 300 >/dev/null || fail "fio, order $order"
    guest_shutdown ring
    assert_nothing_left
done
