#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# A Ceph of one monitor and OSDs in memory, in a folder of its own, with the pool "rbd": for tests and benchmarks.
# usage: ceph-lab.sh start DIR [none|cephx [OSDS [PROCESS]]] | stop DIR     with PROCESS it ends, and DIR goes, when that ends
set -euo pipefail
command=${1:?usage: ceph-lab.sh start|stop DIR}
dir=$(realpath -m "${2:?usage: ceph-lab.sh start|stop DIR}")
conf=$dir/ceph.conf
export CEPH_CONF=$conf

stop() {
    local file
    for file in "$dir"/*.pid; do
        [[ ! -s $file ]] || kill -KILL "$(<"$file")" 2>/dev/null || true
    done
}
wait_for() { # WHAT COMMAND...
    for _ in $(seq 300); do "${@:2}" >/dev/null 2>&1 && return 0; sleep 0.1; done
    echo "ceph-lab: $1 did not happen within 30 s; logs are in $dir" >&2
    return 1
}
if [[ $command == stop ]]; then
    stop
    exit 0
fi
# The daemons must not keep what this process inherited: who started it may wait until all have closed it.
for file in "/proc/$$/fd"/*; do
    number=${file##*/}
    ((number < 3 || number == 255)) || eval "exec $number>&-"
done
auth=${3:-none}
osds=${4:-1}
mkdir -p "$dir"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fsid=$(</proc/sys/kernel/random/uuid)
cat >"$conf" <<END
[global]
fsid = $fsid
mon host = 127.0.0.1:$port
mon initial members = a
auth cluster required = $auth
auth service required = $auth
auth client required = $auth
osd pool default size = $osds
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
paxos propose interval = 0.05
paxos min wait = 0.01
run dir = $dir
mon data = $dir/mon.\$id
osd data = $dir/osd.\$id
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
ms bind ipv6 = false
public network = 127.0.0.0/8
keyring = $dir/keyring
END
for daemon in mon osd; do
    printf '[%s]\nadmin socket = %s\nlog file = %s\npid file = %s\n' "$daemon" "$dir/\$name.asok" "$dir/\$name.log" "$dir/\$name.pid"
done >>"$conf"
trap 'stop' ERR
ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool "$dir/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
monmaptool --create --add a "127.0.0.1:$port" --fsid "$fsid" "$dir/monmap" >/dev/null
ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
ceph-mon -i a </dev/null >"$dir/mon.out" 2>&1
wait_for "the start of the monitor" timeout 5 ceph mon stat
for ((osd = 0; osd < osds; osd++)); do
    ceph osd create >/dev/null
    mkdir "$dir/osd.$osd"
    if [[ $auth == cephx ]]; then
        ceph auth get-or-create "osd.$osd" mon 'allow profile osd' osd 'allow *' -o "$dir/osd.$osd/keyring" >/dev/null
        printf '[osd.%s]\nkeyring = %s\n' "$osd" "$dir/osd.$osd/keyring" >>"$conf"
    fi
    ceph-osd -i "$osd" --mkfs 2>/dev/null
    ceph osd crush add "osd.$osd" 1.0 root=default host=localhost 2>/dev/null
    ceph-osd -i "$osd" </dev/null >"$dir/osd.out" 2>&1
done
up() { ceph osd stat | grep -q "$osds up"; }
wait_for "the start of the OSDs" up
ceph osd pool create rbd 8 >/dev/null 2>&1
ceph osd pool application enable rbd rbd >/dev/null 2>&1
if [[ -n ${5:-} ]]; then
    # That process may remove the folder itself, at its end: the numbers are taken now.
    mapfile -t daemons < <(cat "$dir"/*.pid)
    { tail --pid="$5" -f /dev/null; kill -KILL "${daemons[@]}"; rm -rf "$dir"; } </dev/null >/dev/null 2>&1 &
fi
