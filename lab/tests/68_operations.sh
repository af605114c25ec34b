# SPDX-License-Identifier: BSD-2-Clause
# What an administrator does to a disk while its guest writes and verifies: settings, pauses, another image, snapshots and their way back,
# other sizes, each again and again. The guest notices a delay, which is measured in the guest, and nothing else.
# limit: 5400
# needs: peers
repeats=${XEN_LAB_REPEATS:-10}
tar -C / -xf /host/peers.tar
xbbd_stop
xbbd_start --backing-dir "$images"
# Two of an xbbd stay open from the first gathering and from the first look at an image on.
descriptors_before=$((descriptors_before + 2))
mib=$((1 << 20))
base=$images/base.img
truncate -s 128M "$base"
sfdisk -q "$base" <<<"$(printf 'label: dos\n2048,131072\n133120,98304\n')"
mke2fs -q -t ext4 -E offset=$mib "$base" 64M
cp /host/bin/read-gaps "$images/program.img"
truncate -s 1M "$images/program.img"
guest_create operated "$(disk xvda "raw:$base")" "$(disk xvdc "raw:$images/program.img" ro)"
domain=$(domid operated)
guest operated 'dd if=/dev/xvdc of=/tmp/read-gaps bs=64k 2>/dev/null; chmod 755 /tmp/read-gaps'
xl block-detach operated xvdc
log=$consoles/guest-operated.log
pauses=/tmp/pauses
# Where the events of this test begin.
place=$(xbbctl events --json | jq -r '"\(.epoch):\(.next)"')
: >/tmp/events
# Puts the events since the last call into /tmp/events. xbbd keeps the last 256 of a disk, and this test makes more.
take_events() {
    while :; do
        xbbctl events --json --since "$place" | tail -n 1 >/tmp/answer
        jq -e '.gap | not' /tmp/answer >/dev/null || fail "events are missing: $(jq -c 'del(.events)' /tmp/answer)"
        [[ $(jq '.events | length' /tmp/answer) -gt 0 ]] || break
        jq -c '.events[]' /tmp/answer >>/tmp/events
        place=$(jq -r '"\(.epoch):\(.next)"' /tmp/answer)
    done
}
xbbctl wait "$domain" xvda connected --timeout 0
xbbctl wait "$domain" xvda running --timeout 0
: >"$pauses"

## The load, which leaves the emulated processors some time for what is measured: one partition is written and verified by fio, in the file system of the other one files come, are read again and go.

guest operated 'mount -t ext4 /dev/xvda1 /mnt'
guest_start operated raw 'while [ ! -e /tmp/stop ]; do
    fio --name=raw --filename=/dev/xvda2 --size=48M --io_size=8M --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=4 \
        --rate_iops=40 --fdatasync=32 --randrepeat=0 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --minimal >/tmp/raw.fio 2>&1 ||
        { cat /tmp/raw.fio; exit 1; }
    echo >>/tmp/rounds
    done
    echo "$(wc -l </tmp/rounds) rounds of fio"'
guest_start operated files 'set -e; number=0
    while [ ! -e /tmp/stop ]; do
        number=$((number + 1))
        dd if=/dev/urandom of=/mnt/new bs=16k count=$((number % 20 + 1)) conv=fsync 2>/dev/null
        sum=$(md5sum </mnt/new)
        echo 1 >/proc/sys/vm/drop_caches
        [ "$(md5sum </mnt/new)" = "$sum" ]
        mv /mnt/new /mnt/file-$((number % 16))
        sleep 0.5
    done
    echo "$number files"'
guest_start operated gaps 'exec /tmp/read-gaps /dev/xvda 500 /tmp/stop'
await 120 "I/O" completed_more operated xvda 50

windows() { tail -c "+$(($1 + 1))" "$log" | tr -d '\r' | grep -a '^gaps| [0-9.]* [0-9]* [0-9]*$'; } # what was logged before
more_windows() { [[ $(windows "$1" | wc -l) -ge $2 ]]; }
# Runs a command, and notes the longest read from its begin to the end of the second window after its end.
measure() { # name, command...
    local name=$1 before after
    shift
    before=$(stat -c %s "$log")
    "$@" >/tmp/measured 2>&1 || { cat /tmp/measured; fail "$name: $*"; }
    after=$(stat -c %s "$log")
    await 120 "the guest's reads after '$name'" more_windows "$after" 2
    windows "$before" | awk -v name="$name" '$3 > longest { longest = $3 } END { print name "\t" longest }' >>"$pauses"
    note "$(tail -n 1 "$pauses")"
}
served() { xbbctl list --json | jq -r '.vbds[] | select(.device == "xvda") | .path'; }
serves() { [[ $(served) == "$1" ]] || fail "xvda has $(served), not $1"; }
paused() { # words of pause
    xbbctl pause "$domain" xvda "$@" && xbbctl resume "$domain" xvda
}
again() { # function, the name of what it does
    note "$2"
    local number
    for ((number = 1; number <= repeats; number++)); do
        "$1" "$number"
    done
    take_events
}

nothing() { measure "nothing" sleep 1; }
limit() { measure "set a limit" xbbctl set "$domain" xvda "total-iops-sec=$((100000 + $1))"; }
upgrade() { measure "upgrade" xbbctl upgrade "$domain" xvda; }
pause() { measure "pause, resume" paused; }
release() { measure "pause --release, resume" paused --release; }
size=128
grow() { # name
    size=$((size + 4))
    measure "$1" xbbctl resize "$domain" xvda "${size}M"
    await 60 "the new size" guest operated "[ \$(blockdev --getsize64 /dev/xvda) -eq $((size * mib)) ]"
}
grow_raw() { grow "resize of a raw image"; }
grow_qcow2() { grow "resize of a qcow2 image"; }
swap() {
    qemu-img create -q -f qcow2 -b "$base" -F raw "$images/swap-$1.qcow2"
    measure "swap" xbbctl swap "$domain" xvda --image "qcow2:$images/swap-$1.qcow2"
    serves "$images/swap-$1.qcow2"
    measure "commit" xbbctl commit "$domain" xvda
    serves "$base"
    rm "$images/swap-$1.qcow2"
}
snapshots() {
    measure "snapshot" xbbctl snapshot "$domain" xvda "$images/a.qcow2"
    measure "snapshot" xbbctl snapshot "$domain" xvda "$images/b.qcow2"
    serves "$images/b.qcow2"
    measure "rebase" xbbctl rebase "$domain" xvda --below "raw:$base"
    measure "commit" xbbctl commit "$domain" xvda
    serves "$base"
    rm "$images"/[ab].qcow2
}
look() { measure "list, show, stats, metrics, events" looked; }
looked() {
    xbbctl list --json && xbbctl show "$domain" xvda && xbbctl stats "$domain" xvda && xbbctl events && xbbctl metrics >/tmp/metrics
}
again nothing "nothing"
again look "looks"
again limit "limits"
xbbctl set "$domain" xvda total-iops-sec=0
again upgrade "upgrades"
again pause "pauses"
xbbctl pause "$domain" xvda
xbbctl wait "$domain" xvda paused --timeout 0
xbbctl resume "$domain" xvda
xbbctl wait "$domain" xvda running
again release "pauses with release"
again grow_raw "growth"
again swap "swaps and commits"
again snapshots "snapshots"

note "the image is copied to another place while the guest waits"
xbbctl pause "$domain" xvda --release --timeout 300
cp --sparse=always "$base" "$images/moved.img"
xbbctl swap "$domain" xvda --image "raw:$images/moved.img"
xbbctl resume "$domain" xvda
serves "$images/moved.img"
rm "$base"
base=$images/moved.img

note "what was written between two snapshots"
xbbctl snapshot "$domain" xvda "$images/first.qcow2"
guest operated "dd if=/dev/urandom of=/dev/xvda bs=64k seek=$((120 * 16)) count=4 oflag=direct"
xbbctl snapshot "$domain" xvda "$images/second.qcow2"
xbbctl changed "$images/first.qcow2" --json | tail -n 1 >/tmp/changed
# Nothing of the free space but these 256 KiB.
jq -e --argjson from $((114 * mib)) --argjson place $((120 * mib)) \
    '[.ranges[] | select(.offset + .length > $from)] | length == 1 and .[0].offset == $place and .[0].length == 262144' /tmp/changed ||
    fail "changed: $(cat /tmp/changed)"

note "a backup of the frozen image while the guest goes on"
qemu-img convert -f qcow2 -O raw "$images/first.qcow2" "$images/backup.img"
# As after a loss of power: the journal is played first.
dd if="$images/backup.img" of="$images/backup.ext4" bs=1M skip=1 count=64 2>/dev/null
e2fsck -fp "$images/backup.ext4" || [[ $? -eq 1 ]] || fail "e2fsck of the backup"
e2fsck -fn "$images/backup.ext4" || fail "the backup is not clean"
rm "$images"/backup.*

again grow_qcow2 "growth of a qcow2 image"

note "what was told of it"
take_events
jq -es 'map(.seq) | . as $all | [range(1; length) | $all[.] - $all[. - 1]] | all(. == 1)' /tmp/events >/dev/null || fail "numbers of events are not in a row"
told() { jq -s --arg event "$1" '[.[] | select(.event == $event and .device == "xvda")] | length' /tmp/events; }
for event in paused resumed resized worker-replaced; do
    note "$event: $(told "$event") events"
    [[ $(told "$event") -ge 1 ]] || fail "no event '$event'"
done
# Of a device that makes many, not each is told but how many there were: two of each pause, and one of each new worker.
events=$(jq -s '[.[] | select(.device == "xvda") | 1 + (.suppressed // 0)] | add' /tmp/events)
[[ $events -ge $((10 * repeats)) ]] || fail "$events events of xvda, with those that were suppressed"
[[ $(told error) -eq 0 && $(told failed) -eq 0 && $(told disconnected) -eq 0 ]] ||
    fail "events of xvda: $(jq -c 'select(.event == "error" or .event == "failed" or .event == "disconnected")' /tmp/events)"

note "what is counted of it"
xbbctl metrics >/tmp/metrics
disk_metric() { grep -F "$1{domain=\"operated\",vdev=\"xvda\"" /tmp/metrics | sed 's/.* //'; }
[[ $(disk_metric xbb_size_bytes) -eq $((size * mib)) ]] || fail "xbb_size_bytes: $(grep xbb_size_bytes /tmp/metrics)"
[[ $(disk_metric xbb_paused) -eq 0 && $(disk_metric xbb_connected) -eq 1 && $(disk_metric xbb_worker_up) -eq 1 ]] || fail "$(grep xvda /tmp/metrics)"
[[ $(tail -n 1 /tmp/metrics) == "# EOF" ]] || fail "metrics: $(tail -n 3 /tmp/metrics)"

note "the end"
guest operated 'touch /tmp/stop'
guest_wait operated raw 600 || fail "fio"
guest_wait operated files 300 || fail "the files"
guest operated 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the guest's kernel saw errors"
guest operated 'set -e; cd /mnt; find . -type f | sort | xargs md5sum >/tmp/sums; cd /; umount /mnt; e2fsck -fn /dev/xvda1
    mount -t ext4 /dev/xvda1 /mnt; cd /mnt; md5sum -c /tmp/sums >/tmp/checked || { grep -v OK /tmp/checked; exit 1; }; cd /; umount /mnt' 300 ||
    fail "the file system"
guest_shutdown operated
assert_nothing_left
for image in first second; do
    qemu-img check "$images/$image.qcow2" || fail "qemu-img check of $image.qcow2"
done
qemu-img convert -f qcow2 -O raw "$images/second.qcow2" "$images/end.img"
dd if="$images/end.img" of="$images/end.ext4" bs=1M skip=1 count=64 2>/dev/null
e2fsck -fn "$images/end.ext4" || fail "the file system of the image"

note "the longest read of 4 KiB in the guest, in ms of the lab's clock"
cut -f 1 "$pauses" | uniq | awk '!seen[$0]++' | while IFS= read -r name; do
    awk -F '\t' -v name="$name" '$1 == name { print $2 }' "$pauses" | sort -n |
        awk -v name="$name" '{ all[NR] = $1 } END { printf "| %s | %d | %.1f | %.1f |\n", name, NR, all[int((NR + 1) / 2)] / 1000, all[NR] / 1000 }'
done
xbbd_stop
xbbd_start
