// SPDX-License-Identifier: BSD-2-Clause
// The version of all programs.

/// The version, as `--version` shows it.
public let xbbVersion = "0.1.0"
