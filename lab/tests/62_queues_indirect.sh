# SPDX-License-Identifier: BSD-2-Clause
# A guest with four processors gets four queues and requests of up to 1 MiB, by copies and by pages that stay mapped: its root file system is
# ours, fio verifies, files are checked, what is trimmed comes back, the disk grows, is saved and restored, and its workers are killed again
# and again. What this XBB does not have is named at the end, after all that can be done without it.
# limit: 7200
missing=()
kills_wanted=$((${XEN_LAB_KILLS:-100} / 2))
persistent=$(xbbd --help | grep -o -m 1 -e '--[a-z-]*persistent[a-z-]*' | head -n 1) || true
modes=(copy)
[[ -z $persistent ]] || modes+=(persistent)
[[ -n $persistent ]] || missing+=("a setting for persistent grants")
warnings() { dmesg | grep -cE 'WARNING: |BUG: |Bad page' || true; }
warnings_before=$(warnings)

mkdir -p /srv/root
(cd /srv/root && cpio -idm --quiet <../guest.cpio)
truncate -s 320M "$images/template.img"
mke2fs -q -t ext4 -d /srv/root "$images/template.img"
rm -rf /srv/root

lacks() { # mode, what, command...
    local mode=$1 what=$2
    shift 2
    "$@" || missing+=("$what ($mode)")
}
backend_key() { xenstore-read "/local/domain/0/backend/vbd/$domain/$1" 2>/dev/null || echo 0; }
in_guest() { [[ $(guest many "$1") == "$2" ]]; } # script, what it prints

offered() { # mode
    lacks "$1" "multi-queue-max-queues of 4, is $(backend_key 51728/multi-queue-max-queues)" test "$(backend_key 51728/multi-queue-max-queues)" -ge 4
    lacks "$1" "feature-max-indirect-segments of 256, is $(backend_key 51728/feature-max-indirect-segments)" \
        test "$(backend_key 51728/feature-max-indirect-segments)" -ge 256
    lacks "$1" "four queues in the guest" in_guest 'ls /sys/block/xvdb/mq | wc -l' 4
    lacks "$1" "requests of 1 MiB in the guest" in_guest 'cat /sys/block/xvdb/queue/max_hw_sectors_kb' 1024
    lacks "$1" "'indirect descriptors: enabled' in the guest's log" guest many 'dmesg | grep "blkfront: xvdb: .*indirect descriptors: enabled"'
    local grants=disabled
    [[ $1 == copy ]] || grants=enabled
    lacks "$1" "'persistent grants: $grants' in the guest's log" guest many "dmesg | grep 'blkfront: xvdb: .*persistent grants: $grants'"
}

files() {
    guest many 'set -e
        mke2fs -q -t ext4 /dev/xvdb; mount -t ext4 /dev/xvdb /mnt
        cp -a /bin /sbin /lib /usr /mnt/; sync; echo 3 >/proc/sys/vm/drop_caches
        cd /mnt; find . -type f | sort | xargs md5sum >/sums; cd /
        umount /mnt; e2fsck -fn /dev/xvdb; mount -t ext4 /dev/xvdb /mnt
        (cd /mnt && md5sum -c /sums >/tmp/checked) || { grep -v OK /tmp/checked; exit 1; }' 300 || fail "files"
    local full
    full=$(stat -c %b "$images/a.img")
    guest many 'set -e; rm -rf /mnt/*; sync; fstrim -v /mnt; umount /mnt; e2fsck -fn /dev/xvdb' || fail "fstrim"
    [[ $(stat -c %b "$images/a.img") -lt $((full / 2)) ]] || fail "fstrim gave nothing back: $full, then $(stat -c %b "$images/a.img") blocks"
}

grows() { # mode
    if ! xbbctl --help | grep -qE '^ +resize '; then
        missing+=("xbbctl resize ($1)")
        return
    fi
    xbbctl resize "$domain" xvdb 192M
    await 60 "the new size" in_guest 'blockdev --getsize64 /dev/xvdb' $((192 << 20))
    guest many 'dd if=/dev/urandom of=/dev/xvdb bs=1M seek=191 count=1 oflag=direct' || fail "the end of the disk that grew"
}

# Four jobs, as a queue is one processor's; small and large requests.
load="--numjobs=4 --offset_increment=16M --bsrange=4k-1M --group_reporting"

saved_and_restored() {
    guest_fio_start many xvdb "$load"
    xl save many "$images/saved"
    await 60 "the workers' end" eval '[[ $(workers) -eq 0 && $(vbd_nodes) -eq 0 ]]'
    xl restore "$images/saved"
    rm -f "$images/saved"
    domain=$(domid many)
    await 120 "I/O after the restore" completed_more many xvdb 20
    guest_fio_end many xvdb
}

killed() {
    local kills=0 pid
    guest_fio_start many xvdb "$load"
    for ((kills = 1; kills <= kills_wanted; kills++)); do
        pid=$(pid_of "$domain" 51728) || fail "no worker before kill $kills"
        kill -KILL "$pid"
        await 60 "another worker after kill $kills" another_worker "$domain" 51728 "$pid"
        # A few requests, and none: the next kill may come while those before are done again.
        ((kills % 2)) || await 60 "I/O after kill $kills" completed_more many xvdb 5
    done
    guest_fio_end many xvdb
    note "$kills_wanted kills, $(grep -c 'requests in flight in plugin' /var/log/xbbd.log || true) successors with requests in flight"
}

for mode in "${modes[@]}"; do
    note "mode $mode"
    xbbd_stop
    options=(--max-queues 4 --restart-limit 1000 --restart-window 1)
    [[ -z $persistent ]] || options+=("$persistent" "$([[ $mode == copy ]] && echo off || echo on)")
    xbbd_start "${options[@]}"
    cp "$images/template.img" "$images/root.img"
    rm -f "$images/a.img"
    truncate -s 128M "$images/a.img"
    # Linux keeps a page for each segment of each request of each queue where it offers persistent grants: 128 MiB for a disk here.
    guest_memory=$([[ $mode == copy ]] && echo 384 || echo 896) guest_processors=4 guest_extra="root=/dev/xvda rw xen_blkfront.max_queues=4 xen_blkfront.max_indirect_segments=256" \
        guest_create many "$(disk xvda "raw:$images/root.img")" "$(disk xvdb "raw:$images/a.img")"
    domain=$(domid many)
    guest many 'grep -q "^/dev/xvda / ext4 rw" /proc/mounts' || fail "the root file system is not ours"
    offered "$mode"
    guest many "fio --name=all --filename=/dev/xvdb --rw=randwrite --size=16M --iodepth=8 --direct=1 --ioengine=libaio --fdatasync=32 \
        --verify=crc32c --verify_fatal=1 $load --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }" 600 || fail "fio"
    files
    grows "$mode"
    saved_and_restored
    killed
    guest many 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the guest's kernel saw errors"
    guest_shutdown many
    assert_nothing_left
    # It was not unmounted: the journal is played first.
    e2fsck -fp "$images/root.img" || [[ $? -eq 1 ]]
    e2fsck -fn "$images/root.img"
done
[[ $(warnings) -eq $warnings_before ]] || fail "dom0's kernel warned: $(dmesg | grep -E 'WARNING: |BUG: |Bad page' | tail -n 5)"
xbbd_stop
xbbd_start
[[ ${#missing[@]} -eq 0 ]] || fail "this XBB lacks: $(printf '%s; ' "${missing[@]}")"
