# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# Stands behind the generated completion of xbbctl, and gets it where it stands alone: what follows '=' of a setting, ':' of a
# format or '/' of a folder has no space in front. bash takes ':' for the end of a word, so what stands before it is no part of
# what is offered.
if ! declare -F _xbbctl >/dev/null; then
    # shellcheck source=/dev/null
    . <(xbbctl --generate-completion-script bash)
fi
_xbbctl_with_values() {
    _xbbctl "$@"
    if [[ ${COMPREPLY[0]-} == *[=:/] ]]; then compopt -o nospace +o filenames; fi 2>/dev/null
}
complete -o filenames -F _xbbctl_with_values xbbctl
