// SPDX-License-Identifier: BSD-2-Clause
// The plugin has no C interface of its own; the build wants a public header.
