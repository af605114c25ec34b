# SPDX-License-Identifier: BSD-2-Clause
# A guest boots from a written qcow2 image over a template: by script=block-xbb, by format=qcow2 (xbb-dm), under QEMU's qdisk, and again by
# script=block-xbb. Workers of it are killed. Each boot finds what the ones before wrote, and qemu-img finds nothing wrong after each.
# limit: 3000
# needs: peers
tar -C / -xf /host/peers.tar
xbbd_stop
templates=$images/templates
image=$images/root.qcow2
mkdir -p /srv/root "$templates"
(cd /srv/root && cpio -idm --quiet <../guest.cpio)
truncate -s 384M "$templates/root.img"
mke2fs -q -t ext4 -d /srv/root "$templates/root.img"
rm -rf /srv/root
before=$(md5sum <"$templates/root.img")
qemu-img create -q -f qcow2 -b templates/root.img -F raw "$image"

pid_of() { # domain
    local pid
    read -r pid _ 2>/dev/null <"/run/xbb/vbd-$kind-$1-51712.lock" && [[ -e /proc/$pid/exe ]] && echo "$pid"
}
another_worker() { [[ -n $(pid_of "$1") && $(pid_of "$1") != "$2" ]]; } # domain, the one before

# Boots, looks at what the guests before wrote, writes, and ends; the worker is killed while it writes.
boots() { # guest, kind that serves it or nothing, disk
    local pid number
    kind=$2
    guest_memory=384 guest_extra="root=/dev/xvda rw" guest_create "$1" "$3"
    guest "$1" 'grep -q "^/dev/xvda / ext4 rw" /proc/mounts && for sum in /sum-*; do [ ! -e $sum ] || md5sum -c $sum || exit 1; done' ||
        fail "$1: the root file system"
    guest_start "$1" writes "set -e; for number in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/data-$1-\$number bs=64k count=16 conv=fsync 2>/dev/null; done
        md5sum /data-$1-* >/sum-$1; sync; echo 3 >/proc/sys/vm/drop_caches; md5sum -c /sum-$1"
    for ((number = 1; number <= (${#kind} ? 4 : 0); number++)); do
        pid=$(pid_of "$(domid "$1")") || { sleep 0.5; pid=$(pid_of "$(domid "$1")"); } || fail "$1: no worker before kill $number"
        kill -KILL "$pid"
        await 60 "another worker after kill $number" another_worker "$(domid "$1")" "$pid"
    done
    guest_wait "$1" writes 600 || fail "$1: what was written is not read"
    guest "$1" 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the kernel of $1 saw errors"
    guest_shutdown "$1"
    assert_nothing_left
    qemu-img check "$image" || fail "$1: qemu-img check"
    [[ $(md5sum <"$templates/root.img") == "$before" ]] || fail "$1: the template was written to"
    note "$1: booted, wrote, and left a whole image of $(stat -c %b "$image") blocks"
}

xbbd_start --restart-limit 1000 --restart-window 1 --backing-dir "$templates"
boots script vbd "$(disk xvda "qcow2:$image")"
xbbd_stop
xbbd_start --restart-limit 1000 --restart-window 1 --backing-dir "$templates" --backend vbd --backend qdisk
guest_lines='device_model_override = "/usr/lib/xbb/xbb-dm"' boots format qdisk "format=qcow2,vdev=xvda,access=rw,target=$image"
xbbd_stop
xbbd_start --backing-dir "$templates"
boots qemu "" "format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target=$image"
boots again vbd "$(disk xvda "qcow2:$image")"
xbbd_stop
xbbd_start
