# SPDX-License-Identifier: BSD-2-Clause
# xl destroy in the middle of I/O on two disks, again and again: nothing is left each time.
# limit: 3600
truncate -s 64M "$images/a.img"
for round in $(seq "${XEN_LAB_DESTROYS:-20}"); do
    guest_create victim "$(disk xvda "raw:$images/a.img")" "$(disk xvdb "raw:$raw_device")"
    for disk in xvda xvdb; do
        guest_start victim "$disk" "fio --name=$disk --filename=/dev/$disk --rw=randrw --bsrange=4k-256k --size=64M \
            --direct=1 --ioengine=libaio --iodepth=16 --fdatasync=64 --time_based --runtime=600 --minimal"
    done
    for disk in xvda xvdb; do
        await 60 "I/O on $disk" completed_more victim "$disk" 50
    done
    xl destroy victim
    assert_nothing_left
    note "round $round: destroyed, nothing left"
done
