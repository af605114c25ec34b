# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# Stands behind the generated completion of xbbctl: of "set" the value follows the '=' without a space.
_xbbctl_with_values() {
    _xbbctl "$@"
    if [[ ${COMPREPLY[0]-} == *= ]]; then compopt -o nospace +o filenames; fi
}
complete -o filenames -F _xbbctl_with_values xbbctl
