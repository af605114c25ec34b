# SPDX-License-Identifier: BSD-2-Clause
# Under verified I/O an image is renamed, removed and exchanged, and a reader has its lock, while workers are killed and replaced and
# xbbd is killed: the guest keeps its bytes, and what the image is on can be unmounted right after the detach. A disk whose files
# nobody has open, and whose name leads to another image, is closed.
# limit: 1800
volume=/srv/volume
truncate -s 192M "$images/volume"
mke2fs -q -F -t ext4 "$images/volume"
mkdir -p "$volume"
mount -o loop "$images/volume" "$volume"
trap 'umount -l "$volume" 2>/dev/null || true' EXIT
truncate -s 64M "$volume/a.img" "$images/b.img" "$images/other.img"
printf 'another file' | dd of="$images/other.img" conv=notrunc 2>/dev/null
# The same file under a name that nobody touches.
ln "$volume/a.img" "$volume/kept"
guest_create exchange "$(disk xvda "raw:$volume/a.img")" "$(disk xvdb "raw:$images/b.img")"
domain=$(domid exchange)
sum=$(guest exchange 'dd if=/dev/urandom of=/tmp/data bs=64k count=32 2>/dev/null
    for disk in xvda xvdb; do dd if=/tmp/data of=/dev/$disk bs=64k seek=512 oflag=direct 2>/dev/null; done
    md5sum </tmp/data')
bytes_of() { dd if="$1" bs=64k skip=512 count=32 2>/dev/null | md5sum; }
guest_fio_start exchange xvda

change() { # renamed | removed | exchanged
    rm -f "$volume/a.img"
    case $1 in
    renamed) ln "$volume/kept" "$volume/moved" ;;
    exchanged) cp "$images/other.img" "$volume/a.img" ;;
    esac
}
restore() {
    rm -f "$volume/a.img" "$volume/moved"
    ln "$volume/kept" "$volume/a.img"
}
end_worker() { # killed | upgraded
    local pid before
    pid=$(pid_of "$domain" 51712)
    if [[ $1 == killed ]]; then kill -KILL "$pid"; else xbbctl upgrade "$domain" xvda; fi
    await 60 "another worker" another_worker "$domain" 51712 "$pid"
    await 120 "I/O of the new worker" completed exchange xvda
    before=$(completed exchange xvda)
    await 120 "I/O after '$1'" completed_more exchange xvda "$((before + 20))"
}
for how in renamed removed exchanged; do
    for end in killed upgraded; do
        restore
        /host/bin/hold-lock "$volume/kept" >/tmp/lock &
        holder=$!
        await 30 "the reader's lock" grep -q held /tmp/lock
        change "$how"
        end_worker "$end"
        # The one after it is given the same.
        end_worker killed
        kill "$holder"
        wait "$holder" || true
        note "$how, $end: served on"
    done
done
grep -q "another image" /var/log/xbbd.log && fail "another image was looked at"
restore

note "xbbd is killed"
worker=$(pid_of "$domain" 51712)
kill -KILL "$(pidof xbbd)"
await 30 "the end of xbbd" eval '! pidof xbbd'
xbbd_start
[[ $(pid_of "$domain" 51712) == "$worker" ]] || fail "the worker was $worker and is $(pid_of "$domain" 51712)"
end_worker killed
end_worker upgraded

note "xbbd and a worker are killed, and another image is in the place of the disk's"
victim=$(pid_of "$domain" 51728)
kill -KILL "$(pidof xbbd)" "$victim"
await 30 "the end of xbbd" eval '! pidof xbbd'
mv "$images/b.img" "$images/b.kept"
cp "$images/other.img" "$images/b.img"
xbbd_start
await 60 "the reason" grep -q "another image stands in the place" /var/log/xbbd.log
await 60 "the disk to be closed" eval "[[ \$(xenstore-read /local/domain/0/backend/vbd/$domain/51728/state) != 4 ]]"
cmp "$images/b.img" "$images/other.img" || fail "the other image was written to"
[[ $(bytes_of "$images/b.kept") == "$sum" ]] || fail "the image of xvdb has other bytes"
xl block-detach --force exchange xvdb

guest_fio_end exchange xvda
guest exchange 'dmesg | grep -iE "I/O error.*xvda|xvda.*error"' && fail "the guest's kernel saw errors"
[[ $(guest exchange 'dd if=/dev/xvda bs=64k skip=512 count=32 iflag=direct 2>/dev/null | md5sum') == "$sum" ]] ||
    fail "the guest reads other bytes than it wrote"
xl block-detach exchange xvda
umount "$volume" || fail "the file system of the image is busy after the detach"
mount -o loop "$images/volume" "$volume"
[[ $(bytes_of "$volume/kept") == "$sum" ]] || fail "the image has other bytes"
umount "$volume"
guest_shutdown exchange
