# SPDX-License-Identifier: BSD-2-Clause
# A disk is held to its limits: what the guest's kernel counts in 10 s, while fio asks for all that it can get, and beside it the limit.
# limit: 2400
mib=$((1 << 20))
truncate -s 128M "$images/limits.img"
guest_create limits "$(disk xvda "raw:$images/limits.img")"
domain=$(domid limits)

rates() { # seconds: thousandths of requests in a second, bytes in a second
    guest limits "look() { read -r time _ </proc/uptime; read -r -a s </sys/block/xvda/stat; time=\${time/./}; requests=\$((s[0] + s[4])) bytes=\$(((s[2] + s[6]) * 512)); }
        look; t=\$time r=\$requests b=\$bytes; sleep $1; look
        echo \$(((requests - r) * 100000 / (time - t))) \$(((bytes - b) * 100 / (time - t)))" | tail -n 1
}
limited() { # fio's options, which figure (1 or 2), what it is in thousandths of the limit, setting, limit...
    local options=$1 figure=$2 unit=$3 setting=$4 limit all got part look
    shift 4
    guest_start limits "load-$setting" "fio --name=load --filename=/dev/xvda --size=128M --direct=1 --ioengine=libaio $options --time_based \
        --runtime=3600 --minimal >/dev/null 2>&1; true"
    await 120 "I/O" completed_more limits xvda "$(($(completed limits xvda) + 20))"
    read -r -a all <<<"$(rates 3)"
    note "$setting: without a limit ${all[*]} (requests/1000 s, bytes/s)"
    for limit; do
        xbbctl set "$domain" xvda "$setting=$limit" >/dev/null
        # What the bucket held.
        guest limits 'sleep 1'
        # An emulated machine may have stood still for longer than the tenth of a second that the bucket has: two more looks then. What
        # is too much is too much at once.
        for look in 1 2 3; do
            read -r -a got <<<"$(rates 10)"
            part=$((got[figure - 1] * 1000 / unit / limit))
            note "$setting=$limit: ${got[*]}, $part thousandths of the limit"
            [[ $part -le 1020 ]] || fail "$setting=$limit: $part thousandths of it"
            [[ $part -lt 980 ]] || break
            [[ $look -lt 3 ]] || fail "$setting=$limit: $part thousandths of it"
        done
    done
    xbbctl set "$domain" xvda "$setting=0" >/dev/null
    read -r -a got <<<"$(rates 3)"
    [[ ${got[figure - 1]} -gt $((all[figure - 1] / 2)) ]] || fail "$setting=0: ${got[*]}"
    guest limits 'killall fio'
    guest_wait limits "load-$setting" 60
    xbbctl stats "$domain" xvda | grep throttled_requests
}
# The guest's disk does more than these in a second, if not much more.
limited "--rw=randread --bs=4k --iodepth=8" 1 1000 total-iops-sec 1000 200 50
limited "--rw=randwrite --bs=4k --iodepth=8" 1 1000 write-iops-sec 500 50
limited "--rw=read --bs=1M --iodepth=2" 2 1 read-bytes-sec $((8 * mib)) $((4 * mib))
limited "--rw=write --bs=1M --iodepth=2" 2 1 total-bytes-sec $((6 * mib)) $((3 * mib))
xbbctl events --json | tail -n 1 | jq -e '[.events[] | select(.event == "limit-reached" and .device == "xvda")] | length > 0' >/dev/null ||
    fail "no limit was told"
guest_shutdown limits
