# SPDX-License-Identifier: BSD-2-Clause
# A guest lives on a qcow2 image over a template, attached by script=block-xbb and then by format=qcow2 (xbb-dm): it writes, verifies
# and discards while the workers of its disk are killed. qemu-img finds no error, no lost cluster and what the guest read; QEMU's qdisk
# serves the image on, and XBB after it.
# limit: 5400
# needs: peers
tar -C / -xf /host/peers.tar
xbbd_stop
templates=$images/templates
image=$images/written.qcow2
model=$images/model.img
mkdir -p "$templates" /srv/tree
cp /bin/bash /usr/bin/jq /bin/busybox /srv/tree/
# A file system, and behind it a partition of which the template has a part: clusters are copied, and made.
truncate -s 128M "$templates/base.img"
sfdisk -q "$templates/base.img" <<<"$(printf 'label: dos\n2048,98304\n100352\n')"
truncate -s 80M "$templates/base.img"
mke2fs -q -t ext4 -d /srv/tree -E offset=1048576 "$templates/base.img" 48M
rm -rf /srv/tree
dd if=/srv/vmlinux of="$templates/base.img" bs=1M seek=49 count=31 conv=notrunc 2>/dev/null
before=$(md5sum <"$templates/base.img")
qemu-img create -q -f qcow2 -b templates/base.img -F raw "$image" 128M
truncate -s 128M "$model"

pid_of() { # domain, device
    local pid
    read -r pid _ 2>/dev/null <"/run/xbb/vbd-$kind-$1-$2.lock" && [[ -e /proc/$pid/exe ]] && echo "$pid"
}
another_worker() { [[ -n $(pid_of "$1" 51712) && $(pid_of "$1" 51712) != "$2" ]]; } # domain, the one before

# What the guest does to the disk until it is told to stop: one partition is written, verified and discarded, in the file system of the
# other one files come, are read again and go.
guest_writes() { # guest
    guest_start "$1" raw 'while [ ! -e /tmp/stop ]; do
        fio --name=raw --filename=/dev/xvda2 --size=64M --io_size=8M --rw=randwrite --bsrange=4k-64k --direct=1 \
            --ioengine=libaio --iodepth=8 --fdatasync=32 --randrepeat=0 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
            --minimal >/tmp/raw.fio 2>&1 || { cat /tmp/raw.fio; exit 1; }
        blkdiscard -o $((20 << 20)) -l $((30 << 20)) /dev/xvda2 || exit 1
        echo >>/tmp/rounds
        done
        echo "$(wc -l </tmp/rounds) rounds of fio and blkdiscard"'
    guest_start "$1" files 'set -e; number=0
        while [ ! -e /tmp/stop ]; do
            number=$((number + 1))
            dd if=/dev/urandom of=/mnt/new bs=16k count=$((number % 40 + 1)) conv=fsync 2>/dev/null
            sum=$(md5sum </mnt/new)
            echo 1 >/proc/sys/vm/drop_caches
            [ "$(md5sum </mnt/new)" = "$sum" ]
            mv /mnt/new /mnt/file-$((number % 16))
            [ $((number % 8)) -ne 0 ] || { rm /mnt/file-$((number % 16)); fstrim /mnt; }
        done
        echo "$number files"'
}

kill_workers() { # guest, number
    local domain number pid
    domain=$(domid "$1")
    for ((number = 1; number <= $2; number++)); do
        # What names the worker is written anew while another one takes over.
        await 60 "a worker before kill $number" pid_of "$domain" 51712
        pid=$(pid_of "$domain" 51712) || { sleep 0.5; pid=$(pid_of "$domain" 51712); } || fail "no worker before kill $number"
        kill -KILL "$pid"
        await 60 "another worker after kill $number" another_worker "$domain" "$pid"
        # A few requests, and none: the next kill may come while those before are done again.
        ((number % 3)) || await 60 "I/O after kill $number" completed_more "$1" xvda 5
    done
}

# Ends what the guest does; its files' sums go to /srv/sums, the disk as it reads it to the model.
guest_ends() { # guest
    guest "$1" 'touch /tmp/stop'
    guest_wait "$1" raw 600 || fail "fio in $1"
    guest_wait "$1" files 600 || fail "the files of $1"
    guest_reads "$1"
}
guest_reads() { # guest
    guest "$1" 'set -e; cd /mnt; find . -type f | sort | xargs md5sum; cd /; umount /mnt; e2fsck -fn /dev/xvda1 >&2
        dd if=/dev/xvda of=/dev/xvdb bs=1M iflag=direct conv=fsync 2>/dev/null' 600 >/srv/sums.new || fail "the file system of $1"
    grep -E '^[0-9a-f]{32}  ' /srv/sums.new >/srv/sums
    guest "$1" 'dmesg | grep -iE "I/O error|xvd.*error|EXT4-fs error"' && fail "the kernel of $1 saw errors"
    guest_shutdown "$1"
    assert_nothing_left
}
judge() { # what
    qemu-img check "$image" || fail "$1: qemu-img check"
    qemu-img compare -f qcow2 -F raw "$image" "$model" || fail "$1: the image is not what the guest read"
    [[ $(md5sum <"$templates/base.img") == "$before" ]] || fail "$1: the template was written to"
    note "$1: clean and equal, $(wc -l </srv/sums) files, $(stat -c %b "$image") blocks"
}
# The guest finds the files of before.
guest_mounts() { # guest
    guest "$1" "mount -t ext4 /dev/xvda1 /mnt"
    [[ ! -e /srv/sums ]] || guest "$1" "cd /mnt && echo $(base64 -w 0 /srv/sums) | base64 -d | md5sum -c >/tmp/sums || { grep -v OK /tmp/sums; exit 1; }" ||
        fail "$1 finds other files"
}
serves() { # kinds
    local kinds
    kinds=$(xbbctl list --json | jq -r '[.vbds[].kind] | sort | join(" ")')
    [[ $kinds == "$1" ]] || fail "XBB serves '$kinds'"
}

rm -f /srv/sums
# 50 in all.
kills=$((${XEN_LAB_KILLS:-100} / 4))

kind=vbd
xbbd_start --restart-limit 1000 --restart-window 1 --backing-dir "$templates"
guest_create script "$(disk xvda "qcow2:$image")" "$(disk xvdb "raw:$model")"
guest_mounts script
guest_writes script
await 120 "I/O of script" completed_more script xvda 50
kill_workers script "$kills"
note "$kills kills, $(grep -c 'requests in flight in plugin' /var/log/xbbd.log) with requests in flight"
guest_ends script
judge "script=block-xbb"

xbbd_stop
kind=qdisk
xbbd_start --restart-limit 1000 --restart-window 1 --backing-dir "$templates" --backend vbd --backend qdisk
guest_lines='device_model_override = "/usr/lib/xbb/xbb-dm"' \
    guest_create format "format=qcow2,vdev=xvda,access=rw,target=$image" "$(disk xvdb "raw:$model")"
serves "qdisk vbd"
guest_mounts format
guest_writes format
await 120 "I/O of format" completed_more format xvda 50
kill_workers format "$kills"
note "$kills kills, $(grep -c 'requests in flight in plugin' /var/log/xbbd.log) with requests in flight in all"
guest_ends format
judge "format=qcow2"

# QEMU takes the image over, and gives it back.
xbbd_stop
xbbd_start --backing-dir "$templates"
guest_create qemu "format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target=$image" "$(disk xvdb "raw:$model")"
serves vbd
guest_mounts qemu
guest_writes qemu
await 300 "a round of fio" guest qemu '[ -e /tmp/rounds ]'
guest_ends qemu
judge "qdisk"

kind=vbd
guest_create again "$(disk xvda "qcow2:$image")" "$(disk xvdb "raw:$model")"
guest_mounts again
guest_writes again
await 300 "a round of fio" guest again '[ -e /tmp/rounds ]'
guest_ends again
judge "XBB after QEMU"
rm -f /srv/sums /srv/sums.new
xbbd_stop
xbbd_start
