# SPDX-License-Identifier: BSD-2-Clause
# fio writes blocks of 4 KiB to 1 MiB at random with flushes, and verifies them, on two disks at once: an image and a
# block device.
# limit: 900
truncate -s 256M "$images/a.img"
guest_create fio "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
for disk in xvda xvdb; do
    guest_start fio "$disk" "fio --name=$disk --filename=/dev/$disk --rw=randwrite --bsrange=4k-1M --size=96M --direct=1 \
        --ioengine=libaio --iodepth=16 --fdatasync=16 --verify=crc32c --verify_fatal=1 --minimal >/tmp/$disk.fio 2>&1 ||
        { cat /tmp/$disk.fio; exit 1; }"
done
for disk in xvda xvdb; do
    guest_wait fio "$disk" 600 || fail "fio on $disk"
    note "fio on $disk is done"
    totals=$(xbbctl stats "$(domid fio)" "$disk" --json | jq -c .totals)
    echo "$totals"
    jq -e '.reqs_received == .reqs_completed and .reqs_completed_with_error == 0' <<<"$totals" >/dev/null ||
        fail "requests of $disk are missing or failed"
done
guest_shutdown fio
