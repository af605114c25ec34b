// SPDX-License-Identifier: BSD-2-Clause
// What a worker may do in XenStore.
import Testing
import XenBus

@testable import StoreBroker

@Suite struct StorePolicyTests {
    static let back = "/local/domain/0/backend/vbd/7/51712"
    static let front = "/local/domain/7/device/vbd/51712"
    static let error = "/local/domain/0/error/backend/vbd/7/51712"
    let policy = StorePolicy(backendPath: back, frontendPath: front)

    @Test func whatBelongsToTheWorker() {
        for key in ["state", "online", "params", "frontend", "xbb-options", "sectors"] {
            #expect(policy.allowsReading("\(Self.back)/\(key)"))
        }
        for key in ["state", "ring-ref", "queue-3/ring-ref0"] { #expect(policy.allowsReading("\(Self.front)/\(key)")) }
        #expect(policy.allowsReading("domid"))
        for key in ["state", "sectors", "hotplug-status", "xbb-storage", "feature-max-indirect-segments"] {
            #expect(policy.allowsWriting("\(Self.back)/\(key)"))
        }
        #expect(policy.allowsWriting("\(Self.error)/error"))
        #expect(policy.allowsRemoving(Self.error))
        #expect(policy.allowsRemoving("\(Self.back)/hotplug-status"))
        #expect(policy.allowsWatching(Self.back) && policy.allowsWatching("\(Self.front)/state"))
    }

    @Test(arguments: [
        "", "/", "/local", "/local/domain/0", "/local/domain/0/backend", "/local/domain/0/backend/vbd/7",
        "/local/domain/0/backend/vbd/7/51728/state", "/local/domain/0/backend/vbd/7/517120/state",
        "/local/domain/7/device/vbd/517128/state", "/local/domain/7/device/vbd/51728/state", "/local/domain/8/name",
        "/tool/xenstored", "@releaseDomain", "params", "/local/domain/0/backend/vbd/7/51712/../51728/state",
        "/local/domain/0/backend/vbd/7/51712//state",
    ])
    func whatDoesNot(_ path: String) {
        #expect(!policy.allowsReading(path))
        #expect(!policy.allowsWriting(path))
        #expect(!policy.allowsRemoving(path))
        #expect(!policy.allowsWatching(path))
    }

    /// Which storage is served, by which script, for whom, and whether it is wanted is the toolstack's to say.
    @Test(arguments: [
        "params", "physical-device-path", "physical-device", "xbb-format", "script", "type", "frontend", "frontend-id",
        "online", "mode", "dev", "xbb-options", "anything", "state/below",
        "xbb-swap", "xbb-swap/params", "xbb-released",
    ])
    func keysOfTheToolstack(_ key: String) {
        #expect(!policy.allowsWriting("\(Self.back)/\(key)"))
        #expect(!policy.allowsRemoving("\(Self.back)/\(key)"))
    }

    @Test func theNodesThemselvesStay() {
        for path in [Self.back, "\(Self.back)/state", Self.front, "\(Self.front)/state"] {
            #expect(!policy.allowsRemoving(path))
        }
        #expect(!policy.allowsWriting("\(Self.front)/state"))
    }

    @Test func withoutAFrontendNothingOfOneIsGivenOut() {
        let early = StorePolicy(backendPath: Self.back)
        #expect(!early.allowsReading("\(Self.front)/state") && !early.allowsReading("/state"))
        #expect(!early.allowsWatching("\(Self.front)/state") && !early.allowsWatching("/state"))
    }

    @Test func messagesComeBackAsTheyWere() {
        let request = BrokerRequest(.write, 0x1234_5678, path: "/a/b", value: [0, 255, 0])
        #expect(BrokerRequest(request.bytes[...]) == request)
        let reply = BrokerReply(13, [1, 0, 2])
        #expect(BrokerReply(reply.bytes[...]) == reply)
        for bytes in [[], [1], [99, 0, 0, 0, 0, 65, 0], [1, 0, 0, 0, 0, 65], [1, 0, 0, 0, 0, 0xff, 0]] as [[UInt8]] {
            #expect(BrokerRequest(bytes[...]) == nil)
        }
    }
}
