# SPDX-License-Identifier: BSD-2-Clause
# Two disks of a guest ask for more than a slow device has. Weights of their control groups share it, by each of the kernel's two ways, and a
# disk that is alone has all of it.
# limit: 1200
slow=/dev/vdc
groups=/sys/fs/cgroup
xbbd_stop
modprobe bfq
mount -t cgroup2 cgroup2 "$groups"
trap 'rmdir "$groups/xbb" 2>/dev/null; umount "$groups" 2>/dev/null || true' EXIT
xbbd_start --control-group /xbb
sfdisk -q "$slow" <<<"$(printf 'label: dos\n2048,262144\n264192,262144\n')"
await 30 "the partitions" test -b "${slow}2"
guest_create weights "$(disk xvda "raw:${slow}1")" "$(disk xvdb "raw:${slow}2")"
domain=$(domid weights)
first=$groups/xbb/disk-vbd-$domain-51712
second=$groups/xbb/disk-vbd-$domain-51728

load() { # disk
    guest_start weights "$1" "fio --name=$1 --filename=/dev/$1 --size=128M --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --time_based \
        --runtime=3600 --minimal >/dev/null 2>&1; true"
    await 120 "I/O of $1" completed_more weights "$1" 20
}
look() { # what: reads of both disks in 20 s
    sleep 4
    read -r a b <<<"$(guest weights 'look() { read -r -a a </sys/block/xvda/stat; read -r -a b </sys/block/xvdb/stat; }
        look; first=${a[0]} second=${b[0]}; sleep 20; look; echo $((a[0] - first)) $((b[0] - second))' | tail -n 1)"
    note "$1: $a and $b reads in 20 s, $((a * 100 / (b > 0 ? b : 1))) hundredths"
}
weigh() { # file, weights
    echo "$2" >"$first/$1"
    echo "$3" >"$second/$1"
}
# Eight to one; how much of it an emulated guest can ask for is the machine's affair.
shared() { ((a > b * 2)) || fail "$1: $a and $b reads"; }
alike() { ((a * 3 > b * 2 && b * 3 > a * 2)) || fail "$1: $a and $b reads"; }

for disk in xvda xvdb; do load "$disk"; done
cat "/sys/block/${slow##*/}/queue/scheduler"
ls "$first"
for scheduler in none bfq; do
    echo "$scheduler" >"/sys/block/${slow##*/}/queue/scheduler"
    look "$scheduler, no weights"
    alike "no weights"
done
weigh io.weight 400 50
look "bfq, io.weight"
weigh io.weight 100 100
weigh io.bfq.weight 400 50
look "bfq, io.bfq.weight"
shared "bfq"
weigh io.bfq.weight 100 100

echo none >"/sys/block/${slow##*/}/queue/scheduler"
device=$(cat "/sys/block/${slow##*/}/dev")
echo "$device ctrl=user model=linear rbps=4194304 rseqiops=80 rrandiops=80 wbps=4194304 wseqiops=80 wrandiops=80" >"$groups/io.cost.model"
echo "$device enable=1 ctrl=user rpct=0 rlat=0 wpct=0 wlat=0 min=100 max=100" >"$groups/io.cost.qos"
look "io.cost, no weights"
alike "io.cost"
weigh io.weight 400 50
look "io.cost, io.weight"
shared "io.cost"

guest weights 'killall fio'
for disk in xvda xvdb; do guest_wait weights "$disk" 60; done
load xvdb
look "the one of weight 50 alone"
((b > 200)) || fail "a disk alone has $b reads"
guest weights 'killall fio'
guest_wait weights xvdb 60 || true
echo "$device enable=0" >"$groups/io.cost.qos"
guest_shutdown weights
xbbd_stop
xbbd_start
