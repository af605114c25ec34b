// SPDX-License-Identifier: BSD-2-Clause
// What --version says of xbbd and xbbctl; a test holds it to the version of the workers.

/// The version of this package.
public let controlVersion = "0.1.0"
