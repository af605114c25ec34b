#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Writes xbb-NAME.plugin beside each plugin xbb-NAME.so of a folder: what xbb-vbd knows of it without running its code.
# usage: describe-plugins.sh XBB-VBD FOLDER
set -euo pipefail
for plugin in "$2"/xbb-*.so; do
    "$1" --describe-plugin "$plugin" >"${plugin%.so}.plugin.new"
    chmod 644 "${plugin%.so}.plugin.new"
    mv "${plugin%.so}.plugin.new" "${plugin%.so}.plugin"
done
