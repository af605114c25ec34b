#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-2-Clause
# Writes xbb-NAME.plugin beside each plugin xbb-NAME.so of a folder: what xbb-vbd knows of it without running its code.
# usage: describe-plugins.sh XBB-VBD FOLDER
set -euo pipefail
for plugin in "$2"/xbb-*.so; do
    "$1" --describe-plugin "$plugin" --output "${plugin%.so}.plugin"
    # A plugin of others that claims the same format yields to one that came with XBB.
    sed -i '1s/^{/{"origin":"xbb",/' "${plugin%.so}.plugin"
    chmod 644 "${plugin%.so}.plugin"
done
