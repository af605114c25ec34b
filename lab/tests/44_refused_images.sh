# SPDX-License-Identifier: BSD-2-Clause
# A missing image, one that is none, and one that is in use: xl create fails, and says why in a line of ours.
# limit: 900
mkdir "$images/folder"
: >"$images/empty.img"
truncate -s 64M "$images/used.img"
refused() { # what xl must say, disk
    guest_config bad "$2"
    refuses xl create -q /srv/bad.cfg
    grep -q "hotplug-error.*$1\|$1" <<<"$refusal" || fail "xl did not say '$1' but: $refusal"
    note "$(grep -m 1 "$1" <<<"$refusal")"
    assert_nothing_but "${3:-0}"
}
assert_nothing_but() { # disks that stay
    await 60 "the end of what was refused" eval "[[ \$(workers) -eq $1 && \$(vbd_nodes) -eq $1 && \$(xl list | wc -l) -eq $((2 + $1)) ]]"
}
refused "$images/missing.img does not exist" "$(disk xvda "raw:$images/missing.img")"
refused "$images/folder is a directory" "$(disk xvda "raw:$images/folder")"
refused "empty.img" "$(disk xvda "raw:$images/empty.img")"
refused "nosuchformat" "$(disk xvda "nosuchformat:$images/used.img")"
guest_create user "$(disk xvda "raw:$images/used.img")"
refused "used.img is used by domain $(domid user) as xvda" "$(disk xvda "raw:$images/used.img")" 1
guest_shutdown user
