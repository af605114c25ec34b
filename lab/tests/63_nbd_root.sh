#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# A guest boots from an export that qemu-nbd serves in dom0, over a Unix socket and over TCP. While it writes, its worker and the server
# are killed and started again, and the server is away for a time: the guest sees a slow disk and no error.
# limit: 3000
# needs: peers
tar -C / -xf /host/peers.tar
image=$images/root.img
socket=/run/export.sock
mkdir -p /srv/root
(cd /srv/root && cpio -idm --quiet <../guest.cpio)
truncate -s 384M "$image"
mke2fs -q -t ext4 -d /srv/root "$image"
rm -rf /srv/root

# The server of an export of its own, in its own session: qemu-nbd leaves its socket behind when it is killed.
serve() { # listener...
    rm -f "$socket"
    setsid qemu-nbd -t -e 8 -f raw -x guest "$@" "$image" >>/var/log/qemu-nbd.log 2>&1 </dev/null 8<&- &
    server=$!
    listener=("$@")
}
serve_again() { # signal, seconds without a server
    kill "-$1" "$server"
    await 30 "the end of the server" eval "! kill -0 $server"
    sleep "$2"
    serve "${listener[@]}"
}

boots() { # guest, disk
    local number
    guest_memory=384 guest_extra="root=/dev/xvda rw" guest_create "$1" "$2"
    guest "$1" 'grep -q "^/dev/xvda / ext4 rw" /proc/mounts && for sum in /sum-*; do [ ! -e $sum ] || md5sum -c $sum || exit 1; done' ||
        fail "$1: the root file system"
    guest_start "$1" writes "set -e; for number in 1 2 3 4 5 6 7 8 9 10 11 12; do
        dd if=/dev/urandom of=/data-$1-\$number bs=64k count=16 conv=fsync 2>/dev/null; done
        md5sum /data-$1-* >/sum-$1; sync; echo 3 >/proc/sys/vm/drop_caches; md5sum -c /sum-$1"
    for number in 1 2 3; do
        another=$(pid_of "$(domid "$1")" 51712) || fail "$1: no worker before kill $number"
        kill -KILL "$another"
        await 120 "another worker after kill $number" another_worker "$(domid "$1")" 51712 "$another"
        sleep 1
        serve_again $((number == 2 ? 15 : 9)) $((number == 3 ? 20 : 1))
        sleep 1
    done
    guest_wait "$1" writes 900 || fail "$1: what was written is not read"
    guest "$1" 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the kernel of $1 saw errors"
    guest_shutdown "$1"
    assert_nothing_left
    note "$1: booted and wrote; $(grep -c 'connection to the storage is gone' /var/log/xbbd.log || true) connections broke so far"
}

xbbd_stop
xbbd_start --restart-limit 1000 --restart-window 1
serve -k "$socket"
await 30 "the server's socket" test -S "$socket"
boots unix "$(disk xvda "nbd:nbd+unix:///guest?socket=$socket")"
kill "$server"
await 30 "the end of the server" eval "! kill -0 $server"
serve -b 127.0.0.1 -p 10809
sleep 1
boots tcp "$(disk xvda "nbd:nbd://127.0.0.1/guest")"
kill "$server"
await 30 "the end of the server" eval "! kill -0 $server"
e2fsck -fn "$image" || fail "the file system of the export"
xbbd_stop
xbbd_start
