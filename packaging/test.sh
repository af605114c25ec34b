#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# shellcheck disable=SC2317  # functions that check calls
# What `make deb-test` does inside a Debian 12 that has neither Swift nor XBB. The packages are in /packages.
set -uo pipefail
cd /packages || exit 1
export DEBIAN_FRONTEND=noninteractive XBB_LOOPBACK=/tmp/xen
passed=0
failed=0
log=/tmp/step.log
dropin=/etc/systemd/system/xbbd.service.d

check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        tail -15 "$log" | sed 's/^/        /'
    fi
}
finish() {
    echo "deb-test: $passed passed, $failed failed"
    [[ $failed -eq 0 ]]
    exit
}
need() { # the same, and nothing further makes sense without it
    local before=$failed
    check "$@"
    [[ $failed -eq $before ]] || finish
}
within() { # SECONDS COMMAND...
    local limit=$1
    shift
    for _ in $(seq $((limit * 10))); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    "$@"
}
install_beside_blkback() { # as if the module were loaded and a disk bound to it
    mkdir -p /sys/bus/xen-backend/drivers/vbd/vbd-3-51712
    install_packages "$@" >/tmp/install.log 2>&1 || { cat /tmp/install.log; return 1; }
    rm -r /sys/bus
    grep 'xen-blkback serves backend/vbd, with the disks vbd-3-51712' /tmp/install.log
}
worker_user_is_there() { [[ $(getent passwd xbb) == xbb:x:*:/nonexistent:/usr/sbin/nologin ]]; }
install_packages() { apt-get install -y -qq --no-install-recommends "$@"; }

all_files() { find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /packages \
    -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg \) -prune -o -print | sort; }

no_swift() { ! command -v swift && [[ ! -e /opt/swift ]]; }
objects() { dpkg -L xbb xbb-tools | while read -r file; do [[ -f $file ]] && readelf -h "$file" >/dev/null 2>&1 && echo "$file"; done; }
all_libraries_found() { # and no folder of the machine that built them is looked into
    local file bad=0
    for file in $(objects); do
        ldd "$file" | grep "not found" && { echo "$file"; bad=1; }
        readelf -d "$file" | grep -E 'R(UN)?PATH' | grep -v "\[.ORIGIN[./a-z0-9_-]*]" && { echo "$file"; bad=1; }
        readelf -S "$file" | grep -E '\.(debug_|symtab)' && { echo "$file is not stripped"; bad=1; }
    done
    [[ $bad -eq 0 ]]
}
files_are_there() {
    local file
    for file in /etc/xen/scripts/block-xbb /lib/systemd/system/{xbbd.service,xbb-metrics.socket,xbb-metrics.service,xbb-textfile.timer,xbb-textfile.service} \
        /lib/modprobe.d/xbb.conf /usr/share/xbb/grafana/xbb-dashboard.json \
        /usr/sbin/{xbbd,xbb-vbd,xbbctl} /usr/lib/xbb/xbb-dm /usr/bin/{xbb-loopback,xbb-blkfront,xbb-plugin-check} /usr/include/xbb/{xbb_plugin.h,module.modulemap} \
        /usr/share/xbb/PluginKit/{Package.swift,plugin.map,PluginAPI/module.modulemap,Sources/PluginKit/Plugin.swift} \
        /usr/share/doc/xbb-plugin-dev/examples/{c-memory,c-aio,c-nbd,rust-nbd,swift-ramdisk,swift-embedded}/README.md \
        /usr/lib/xbb/plugins/xbb-{file,rawdisk,empty,null,error,delay}.so /usr/share/bash-completion/completions/xbbctl \
        /usr/share/doc/xbb/{README.Debian,copyright,changelog.gz}; do
        [[ -s $file ]] || { echo "$file is missing"; return 1; }
    done
    [[ -x /etc/xen/scripts/block-xbb ]]
}
conffiles_are() { # all of /etc, and dpkg knows it
    diff <(dpkg-query -W -f='${Conffiles}\n' xbb | awk 'NF {print $1}' | sort) \
        <(dpkg -L xbb | while read -r file; do [[ $file != /etc/* || ! -f $file ]] || echo "$file"; done | sort)
}
man_pages() {
    local page
    for page in xbbd xbb-vbd xbbctl block-xbb xbb-dm xbb-loopback xbb-blkfront xbb-plugin-check nbdkit-xbb-plugin \
        $(dpkg -L xbb xbb-tools | sed -nE 's|.*/man/man[0-9]/(.*)\.[0-9]\.gz$|\1|p'); do
        man -w "$page" && [[ $(man "$page" | wc -l) -gt 20 && -z $(man --warnings "$page" 2>&1 >/dev/null) ]] || return 1
    done
}
helps() {
    local program text
    for program in xbbd xbb-vbd xbbctl xbb-loopback xbb-blkfront xbb-plugin-check /usr/lib/xbb/xbb-dm; do
        # Not a pipe: grep ends before the program has written all.
        if ! text=$("$program" --help) || ! grep -qi usage <<<"$text"; then
            echo "$program --help"
            return 1
        fi
    done
}
completion() { bash -c '. /usr/share/bash-completion/completions/xbbctl && complete -p xbbctl'; }
unit_is_sound() { systemd-analyze verify --man=no /lib/systemd/system/{xbbd.service,xbb-metrics.socket,xbb-textfile.timer}; }
metrics_are_off() { ! systemctl is-enabled xbb-metrics.socket && ! systemctl is-enabled xbb-textfile.timer && ! systemctl is-active xbb-metrics.socket xbb-textfile.timer; }
unit_is_hardened() { systemd-analyze security --offline=yes --threshold=42 /lib/systemd/system/xbbd.service >/dev/null; }
unit_is_enabled() { [[ -L /etc/systemd/system/multi-user.target.wants/xbbd.service ]]; }
plugins_load_together() { # PLUGIN...: all in one process
    xbb-vbd --dump-plugins | tee /tmp/plugins.json
    local name
    for name in "$@"; do jq -e --arg name "$name" '.. | objects | select(.name? == $name and (.error? == null))' /tmp/plugins.json >/dev/null ||
        { echo "no $name"; return 1; }; done
}
qcow_comes_and_goes() { # libqcow with it, and the plugin beside the others
    install_packages ./xbb-plugin-qcow_*.deb && dpkg -s libqcow1 >/dev/null && plugins_load_together qcow file &&
        jq -e '.. | objects | select(.name? == "qcow") | .formats == ["qcow2", "qcow"]' /tmp/plugins.json &&
        apt-get purge -y -qq --auto-remove xbb-plugin-qcow && [[ ! -e /usr/lib/xbb/plugins/xbb-qcow.so ]]
}
rbd_comes_and_goes() { # librbd with it, and it is found by the format
    install_packages ./xbb-plugin-rbd_*.deb && dpkg -s librbd1 >/dev/null && plugins_load_together rbd file &&
        jq -e '.. | objects | select(.name? == "rbd") | .formats == ["rbd"]' /tmp/plugins.json &&
        [[ -s /usr/lib/xbb/plugins/xbb-rbd.plugin && -s /usr/share/doc/xbb-plugin-rbd/rbd.md.gz ]] && man -w xbb-rbd &&
        apt-get purge -y -qq --auto-remove xbb-plugin-rbd && [[ ! -e /usr/lib/xbb/plugins/xbb-rbd.so ]] && ! dpkg -s librbd1
}
nbd_comes_and_goes() { # GnuTLS with it, and it is found by the format
    install_packages ./xbb-plugin-nbd_*.deb && dpkg -s libgnutls30 >/dev/null && plugins_load_together nbd file &&
        jq -e '.. | objects | select(.name? == "nbd") | .formats == ["nbd", "nbds"]' /tmp/plugins.json &&
        [[ -s /usr/lib/xbb/plugins/xbb-nbd.plugin && -s /usr/share/doc/xbb-plugin-nbd/nbd.md.gz ]] && man -w xbb-nbd &&
        apt-get purge -y -qq --auto-remove xbb-plugin-nbd && [[ ! -e /usr/lib/xbb/plugins/xbb-nbd.so ]]
}
vhd_comes_and_goes() { # beside the others
    install_packages ./xbb-plugin-vhd_*.deb && plugins_load_together vhd file &&
        jq -e '.. | objects | select(.name? == "vhd") | .formats == ["vhd"]' /tmp/plugins.json &&
        apt-get purge -y -qq --auto-remove xbb-plugin-vhd && [[ ! -e /usr/lib/xbb/plugins/xbb-vhd.so ]]
}
blkback_stays_away() { grep -qx 'blacklist xen-blkback' /lib/modprobe.d/xbb.conf && modprobe -c | grep -q '^blacklist xen_blkback'; }

not_started_without_xen() { [[ $(systemctl show -P ActiveState,ConditionResult xbbd | paste -sd' ') == "inactive no" ]]; }
# The unit as it is, but for the Xen that it meets.
start_xbbd() {
    mkdir -p "$dropin"
    printf '%s\n' '[Unit]' ConditionPathExists= '[Service]' ExecStart= "ExecStart=/usr/sbin/xbbd --any-script --loopback /tmp/xen" \
        >"$dropin/loopback.conf"
    systemctl daemon-reload && systemctl start xbbd && systemctl is-active xbbd
}
supervisor() { systemctl show -P MainPID xbbd; }
ctl() { xbbctl --loopback /tmp/xen "$@"; }
load() { xbb-blkfront load --domid 1 --vdev "$1" --rw randrw --bs 4k-64k --depth 16 --verify crc32c "${@:2}"; }
nbdkit_copies() {
    nbdkit -U - xbb domid=1 vdev=xvda --run "nbdcopy /tmp/content \"\$uri\" && nbdcopy \"\$uri\" /tmp/back" &&
        cmp -n "$(stat -c %s /tmp/content)" /tmp/content /tmp/back && cmp -n "$(stat -c %s /tmp/content)" /tmp/content /tmp/disk.img
}
worker_of() { xbbctl --loopback /tmp/xen list --json | jq -r --arg device "$1" '.. | objects | select(.device? == $device) | .pid'; }
build_example() {
    # shellcheck disable=SC2046
    gcc -std=c11 -Wall -Wextra -Werror -shared -fPIC -Wl,-z,defs $(pkg-config --cflags xbb-plugin-1) \
        /usr/share/doc/xbb-plugin-dev/examples/c-memory/memory.c -o "$(pkg-config --variable=plugindir xbb-plugin-1)/xbb-memory.so"
}
# Does something to xbbd while a guest is busy: the supervisor is another one, and the worker is the same or another one.
under_load() { # same|another COMMAND...
    load xvda --time 3 >/tmp/load.log 2>&1 &
    local load=$! expected=$1 worker before found=another
    shift
    worker=$(worker_of xvda)
    before=$(supervisor)
    sleep 0.5
    "$@" || return 1
    within 10 systemctl is-active xbbd || return 1
    within 10 xbbctl list || return 1
    echo "worker $worker before, $(worker_of xvda) after; xbbd $before before, $(supervisor) after"
    [[ $worker != "$(worker_of xvda)" ]] || found=same
    [[ -n $worker && -n $(worker_of xvda) && $found == "$expected" && $before != "$(supervisor)" ]] || return 1
    wait "$load" || { cat /tmp/load.log; return 1; }
}
runs_what_is_installed() { # and not a file that the upgrade took away
    [[ $(readlink "/proc/$(worker_of xvda)/exe") == /usr/sbin/xbb-vbd ]]
}
another_worker_for_a_plugin() {
    local worker
    worker=$(worker_of xvda)
    install_packages ./xbb-plugin-qcow_*.deb || return 1
    [[ -n $(worker_of xvda) && $worker != "$(worker_of xvda)" ]] || return 1
    apt-get purge -y -qq --auto-remove xbb-plugin-qcow && load xvda
}
rbd_is_found_by_its_format() {
    install_packages ./xbb-plugin-rbd_*.deb || return 1
    if ctl attach 1 xvdc rbd:rbd/a >/tmp/attach.log 2>&1 || ! grep 'cannot read /etc/ceph/ceph.conf' /tmp/attach.log; then
        cat /tmp/attach.log
        return 1
    fi
    apt-get purge -y -qq --auto-remove xbb-plugin-rbd && load xvda
}
nbd_serves_an_export() {
    install_packages ./xbb-plugin-nbd_*.deb || return 1
    nbdkit -U /tmp/export.sock -P /tmp/export.pid memory 64M && within 10 test -S /tmp/export.sock &&
        ctl attach 1 xvdd 'nbd+unix:///?socket=/tmp/export.sock' && load xvdd --time 2 && ctl detach 1 xvdd || return 1
    kill "$(cat /tmp/export.pid)"
    apt-get purge -y -qq --auto-remove xbb-plugin-nbd && load xvda
}
upgrade() { install_packages ./next-xbb_*.deb ./next-xbb-tools_*.deb; }
kill_supervisor() { kill -KILL "$(supervisor)" && sleep 2; }
stop_and_start() { systemctl stop xbbd && kill -0 "$(cut -d' ' -f1 /run/xbb/vbd-vbd-1-51712.lock)" && systemctl start xbbd; }
removal_is_refused() {
    apt-get remove -y -qq xbb >/tmp/remove.log 2>&1 && return 1
    cat /tmp/remove.log
    grep -q 'vbd-1-51712' /tmp/remove.log && [[ -x /usr/sbin/xbbd ]] && dpkg-query -W -f='${db:Status-Status}\n' xbb | grep -qx installed
}
detach_all() { ctl detach 1 xvda && ctl detach 1 xvdb && [[ -z $(worker_of xvda)$(worker_of xvdb) ]]; }
nothing_left() { diff /tmp/before <(all_files) && ! getent passwd xbb && ! getent group xbb; }

all_files >/tmp/before
need "this system has no Swift" no_swift
need "apt installs xbb and xbb-tools, and says which disks xen-blkback keeps" install_beside_blkback ./xbb_*.deb ./xbb-tools_*.deb
need "apt installs xbb-plugin-dev" install_packages ./xbb-plugin-dev_*.deb
check "files are where they belong" files_are_there
check "what is in /etc are conffiles" conffiles_are
check "programs find their libraries without any folder of the build machine" all_libraries_found
check "every program has --help" helps
check "every program and plugin has its man page" man_pages
check "bash completes xbbctl" completion
check "the user of the workers is there" worker_user_is_there
check "the unit is sound" unit_is_sound
check "the unit is hardened" unit_is_hardened
check "the unit is enabled" unit_is_enabled
check "metrics are not enabled" metrics_are_off
check "xbbd is not started without Xen" not_started_without_xen
check "xen-blkback is kept from loading" blkback_stays_away
check "the plugins load together in one process" plugins_load_together file rawdisk empty null error delay
check "xbb-plugin-qcow brings libqcow, and both go" qcow_comes_and_goes
check "xbb-plugin-rbd brings librbd, is found by its format, and both go" rbd_comes_and_goes
check "xbb-plugin-vhd comes and goes" vhd_comes_and_goes
check "xbb-plugin-nbd is found by its format, comes and goes" nbd_comes_and_goes

truncate -s 64M /tmp/disk.img
head -c 16M /dev/urandom >/tmp/content
xbb-loopback run --dir /tmp/xen >/tmp/loopback.log 2>&1 &
need "a Xen on loopback starts" within 10 test -S /tmp/xen/xenstored.sock
need "systemd starts xbbd" start_xbbd
need "a guest and its disk" eval 'xbb-loopback domain create 1 && ctl attach 1 xvda raw:/tmp/disk.img'
check "a load on the raw image verifies" load xvda
check "nbdkit finds its plugin; nbdcopy copies in and out" nbdkit_copies
check "gcc builds the example plugin with pkg-config" build_example
check "the example plugin serves a disk" eval 'ctl attach 1 xvdb memory: --option size=16M && load xvdb'
check "under load, xbbd is restarted: the worker stays" under_load same systemctl restart xbbd
check "under load, xbbd is stopped and started" under_load same stop_and_start
check "under load, xbbd is killed" under_load same kill_supervisor
check "a package brings a plugin: another worker goes on" another_worker_for_a_plugin
check "a disk of Ceph finds its plugin, and says what it lacks" rbd_is_found_by_its_format
check "the export of an NBD server is a disk" nbd_serves_an_export
check "under load, the packages are upgraded: another worker goes on" under_load another upgrade
check "the new worker is of the new version" runs_what_is_installed
check "reload" systemctl reload xbbd
check "removal is refused while a disk is served" removal_is_refused
check "xbb-tools, which apt took away before it was refused, comes back" install_packages ./next-xbb-tools_*.deb
check "the disk is served after that" load xvda
check "the disks are detached" detach_all
rm -f /usr/lib/xbb/plugins/xbb-memory.so
check "apt removes the packages" apt-get remove -y -qq xbb xbb-tools xbb-plugin-dev
check "after removal the kernel's backend may load again" test ! -e /lib/modprobe.d/xbb.conf
check "after removal xbbd is gone" eval '! systemctl is-active xbbd'
check "after removal nothing is in /run" test ! -e /run/xbb
check "purge" apt-get purge -y -qq --auto-remove xbb
rm -r "$dropin"
check "purge leaves nothing behind" nothing_left
finish
