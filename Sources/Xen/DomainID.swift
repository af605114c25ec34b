// SPDX-License-Identifier: BSD-2-Clause
// Numbers of domains.

/// The number that Xen gives to a domain; 0 is the control domain.
public typealias DomainID = UInt16
