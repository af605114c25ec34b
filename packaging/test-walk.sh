#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Runs what docs/operating.md says, in its order and as it stands there, with its section "Without Xen": `scripts/deb-test.sh walk`
# does it inside a bare Debian 12. The page and the packages are in /packages, the next version's in /packages/next.
set -uo pipefail
cd /packages || exit 1
export DEBIAN_FRONTEND=noninteractive
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/99walk
page=operating.md
log=/tmp/step.log
passed=0
failed=0

# What a command has to print, beyond its exit status of 0.
declare -A expected=(
    ["xbbctl plugins"]="qcow2"
    ["xbbctl list"]="xvdb .*raw +/srv/xen/data.img"
    ["xbbctl log web xvdb"]="3/51728: opened /srv/xen/data.img"
    ["xbbctl show web xvdb"]="total_iops_sec|state +connected"
    ["xbbctl show web xvdb | grep paused"]="intake +paused"
    ["xbbctl show web xvdb | grep sectors"]="62914560"
    ["xbbctl stats web xvdb | grep throttled"]="throttled_requests +[1-9]"
    ["xbbctl events --follow"]="connected"
    ["xbbctl top"]="xvdb"
    ["curl -s http://127.0.0.1:9100/metrics | grep xbb_disks"]="xbb_disks 1"
    ["curl -s http://127.0.0.1:9788/metrics | grep xbb_disks"]="xbb_disks 1"
    ["promtool check config /etc/prometheus/prometheus.yml"]="SUCCESS"
    ["promtool query instant http://127.0.0.1:9090 'rate(xbb_requests_total{vdev=\"xvdb\"}[5m])'"]='domain="web".*=> [0-9]*[1-9]'
    ["xbbctl changed /srv/xen/monday.qcow2 --json"]='"offset"'
)

judge() { # what, status
    local command=$1 status=$2 pattern=${expected[$1]:-}
    if [[ $status -eq 0 && -n $pattern ]] && ! grep -qE -- "$pattern" "$log"; then
        echo "it did not print '$pattern'" >>"$log"
        status=1
    fi
    if [[ $status -eq 0 ]]; then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$command"
    else
        failed=$((failed + 1))
        printf 'FAILED  %s\n        status %s\n' "$command" "$2"
        tail -15 "$log" | cut -c1-300 | sed 's/^/        /'
        # Little of the rest would make sense.
        [[ $failed -lt 6 ]] || { echo "test-walk: given up"; exit 1; }
    fi
}
run() { # a command, as a shell would be given it
    # What goes on until it is told to stop.
    if [[ $1 == *--follow* || $1 =~ ^xbbctl\ top$ ]]; then
        ! declare -F xbbctl >/dev/null || export -f xbbctl
        timeout -s INT 4 bash -c "$1" >"$log" 2>&1
        local status=$?
        judge "$1" $((status == 124 || status == 130 ? 0 : status))
        return
    fi
    eval "$1" >"$log" 2>&1 </dev/null
    local status=$?
    [[ $status -eq 0 || $1 != systemctl* ]] || journalctl --no-pager -n 10 >>"$log"
    judge "$1" "$status"
}

# What is otherwise there, or happens, between two sections.
before() { # heading
    case $1 in
    Upgrade)
        rm xbb*.deb
        mv next/xbb*.deb .
        expected["xbbctl events"]="worker-replaced"
        ;;
    esac
}
# Prometheus scrapes every 15 seconds, and a rate needs two.
before_command() {
    [[ $1 == "promtool query "* ]] || return 0
    local tried
    for ((tried = 0; tried < 60; tried++)); do
        ! eval "$1" 2>/dev/null | grep -q '=>' || break
        sleep 2
    done
}
questions() { # the table's
    local query
    # shellcheck disable=SC2016  # backquotes of the page
    while IFS= read -r query; do
        run "promtool query instant http://127.0.0.1:9090 '$query'"
    done < <(sed -n 's/^|.*| `\(.*\)` |$/\1/p' <<<"$1")
}

heading='' command='' inside=0 table=''
flush() {
    [[ -n $command ]] || return 0
    before_command "$command"
    run "$command"
    command=''
}
while IFS= read -r line <&3; do
    if [[ $inside -eq 1 ]]; then
        case $line in
        '```') flush; inside=0 ;;
        '# '*) flush; command=${line#\# } ;;
        *) command+=$'\n'$line ;;
        esac
        continue
    fi
    case $line in
    '## '*)
        questions "$table"
        table=''
        heading=${line#\#\# }
        [[ $heading != "Beside other tools" ]] || break
        before "$heading"
        echo "-- $heading"
        ;;
    '```console') inside=1 ;;
    '|'*) [[ $heading != *Prometheus* ]] || table+=$line$'\n' ;;
    esac
done 3<"$page"

# The guest lost its disk by the detach, and nothing before it.
journalctl -u web --no-pager -o cat >"$log" 2>&1
if grep -q '^verified: [1-9]' "$log" && [[ $(grep -c '^FAILED' "$log") -le 1 ]] && ! grep '^FAILED' "$log" | grep -qv 'the backend went to state closing'; then
    judge "the guest verified what it read until the disk was detached" 0
else
    judge "the guest verified what it read until the disk was detached" 1
fi
qemu-img check /backup/monday.qcow2 >"$log" 2>&1
judge "the backup is an image without errors" $?
! pgrep xbb-vbd >"$log" 2>&1
judge "no worker is left" $?
echo "test-walk: $passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 40 ]]
