// SPDX-License-Identifier: BSD-2-Clause
import Base
import Testing
import XenBus

@Suite struct NegotiationErrorTests {
    /// One of each; the compiler names a new rule that is missing here.
    static let rules: [NegotiationError.Rule] = [
        .missing, .notDecimal, .numberTooLarge(maximum: 7), .notText, .tooLong(maximum: 7), .notAState,
        .notAFrontendPath, .unknownMode, .notADeviceNumber, .unknownFormatPrefix, .notAFormatName, .noImage,
        .notAnImagePath, .ringTooLarge(maximumPages: 7), .ringPagesNotPowerOfTwo, .ringSizesContradict,
        .ringReferenceRepeated, .noEventChannel, .eventChannelRepeated, .unknownProtocol(expected: [.x86_64]),
        .noQueues, .tooManyQueues(maximum: 7),
    ]

    @Test(arguments: rules) func saysKeyValueAndExpectation(_ rule: NegotiationError.Rule) {
        let text = NegotiationError(rule, key: "ring-ref7", value: Array("a\u{1b}\"b".utf8)).description
        #expect(text.hasPrefix("ring-ref7 is \"a\\x1b\\\"b\": "))
        #expect(text.contains("expected") || rule == .missing)
        #expect(text.utf8.allSatisfy { (0x20...0x7e).contains($0) })
        for value in hostileValues {
            #expect(NegotiationError(rule, key: "key", value: value).description.utf8.count < 300)
        }
    }

    @Test func missingKeysAreNamed() {
        #expect(NegotiationError(.missing, key: "mode").description == "mode is missing: the key is mandatory")
    }

    @Test func valuesAreCutAt64BytesAndEscapesStayWhole() {
        func shown(_ bytes: [UInt8]) -> String? { NegotiationError(.notText, key: "k", value: bytes).value }
        let letters = Array(repeating: UInt8(ascii: "a"), count: 64)
        #expect(shown(letters) == String(repeating: "a", count: 64))
        #expect(shown(letters + letters) == String(repeating: "a", count: 61) + "...")
        #expect(shown(Array(repeating: 0, count: 100)) == String(repeating: "\\x00", count: 15) + "...")
        for count in 0...80 {
            let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 37) }
            #expect((shown(bytes)?.utf8.count ?? .max) <= 64)
        }
    }

    @Test func messagesBecomeOnePrintableLine() {
        #expect(OperatorText.message("open /a\\b: \"no\"\n") == "open /a\\b: \"no\"\\x0a")
        #expect(OperatorText.message(String(repeating: "ä", count: 10_000)).utf8.count <= 512)
    }
}
