// SPDX-License-Identifier: BSD-2-Clause
// xbb-loopback: XenStore, grant tables and event channels for machines without Xen.
Loopback.main()
