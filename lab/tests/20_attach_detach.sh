# SPDX-License-Identifier: BSD-2-Clause
# xl block-attach, block-list and block-detach in a running guest: idle and with I/O in flight, with and without --force.
# limit: 900
truncate -s 64M "$images"/{a,b}.img
guest_create hot "$(disk xvda "raw:$images/a.img")"
attach() {
    xl block-attach hot "$(disk xvdb "raw:$images/b.img")"
    guest hot 'i=0; until [ -b /dev/xvdb ] && [ "$(blockdev --getsize64 /dev/xvdb)" = 67108864 ]; do
        i=$((i + 1)); [ $i -lt 300 ] || exit 1; sleep 0.2; done' || fail "the guest does not see xvdb"
}
gone() {
    guest hot 'i=0; while [ -b /dev/xvdb ]; do i=$((i + 1)); [ $i -lt 300 ] || exit 1; sleep 0.2; done' ||
        fail "the guest still sees xvdb"
    await 30 "the worker's end" eval '[[ $(workers) -eq 1 && $(vbd_nodes) -eq 1 ]]'
}

attach
xl block-list hot | tee /srv/list
[[ $(grep -c '^51[0-9]* ' /srv/list) -eq 2 ]] || fail "xl block-list does not show two disks"
guest hot 'set -e; mke2fs -q -t ext4 /dev/xvdb; mount -t ext4 /dev/xvdb /mnt; cp /bin/busybox /mnt/; umount /mnt'
xl block-detach hot xvdb
gone
e2fsck -fn "$images/b.img"
note "idle: detached"

# Forced more than once: whether the guest asks for something in the moment between is a matter of luck.
job=busy0
for force in "" --force --force --force; do
    attach
    job=busy$((${job#busy} + 1))
    guest_start hot "$job" 'fio --name=b --filename=/dev/xvdb --rw=randwrite --bs=16k --size=64M --direct=1 \
        --ioengine=libaio --iodepth=8 --time_based --runtime=600 --minimal >/dev/null 2>&1'
    await 60 "I/O on xvdb" completed_more hot xvdb 100
    xl block-detach $force hot xvdb
    if guest_wait hot "$job" 120; then
        fail "fio did not notice that its disk went"
    fi
    gone
    note "busy ${force:-}: detached"
done

# The other disk was not touched by all that.
guest hot 'dd if=/dev/urandom of=/dev/xvda bs=1M count=8 oflag=direct 2>/dev/null'
xl block-detach hot xvda
await 30 "the worker's end" eval '[[ $(workers) -eq 0 ]]'
guest_shutdown hot
