// SPDX-License-Identifier: BSD-2-Clause
// What stands in XenStore: the keys of both ends, the negotiation, and the keeper between a worker and the store.
import Driver

fuzz([
    "keys": readKeys,
    "offer": compareOffer,
    "negotiation": negotiate,
    "broker": askKeeper,
])
