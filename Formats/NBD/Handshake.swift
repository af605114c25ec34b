// SPDX-License-Identifier: BSD-2-Clause
// The client's part of the handshake, without a socket: bytes go in, and what to do comes out.
//
// The order: STARTTLS if TLS is demanded, STRUCTURED_REPLY, SET_META_CONTEXT base:allocation if replies are structured, GO. A
// server that does not know GO gets EXPORT_NAME, one that is not "fixed" that alone, and one of the old style says all in its
// greeting. A server answers what it was asked and nothing more: bytes that come before a question are an error. So nothing that
// was put into the stream in clear counts behind the start of TLS.

/// The handshake of one connection.
public struct Handshake: Sendable {
    /// What is wanted of the server.
    public struct Wishes: Sendable, Equatable {
        /// The export's name, at most ``ExportURI/longestName`` bytes.
        public var exportName: [UInt8]
        /// TLS is demanded: a server without it is an error.
        public var isTLS: Bool
        /// Structured replies, and what is allocated.
        public var wantsStructuredReplies = true
        /// EXPORT_NAME instead of GO: for servers that end the connection where they do not know an option.
        public var avoidsGo = false

        /// Wishes for an export.
        public init(exportName: [UInt8], isTLS: Bool) { (self.exportName, self.isTLS) = (exportName, isTLS) }
        /// What a URI asks for.
        public init(_ uri: ExportURI) { self.init(exportName: uri.exportName, isTLS: uri.isTLS) }
    }

    /// What the caller does next.
    public enum Step: Sendable, Equatable {
        /// Send these bytes, in TLS once it has begun.
        case send([UInt8])
        /// Start TLS, then call ``Handshake/tlsStarted()``; until then nothing that arrives is for ``Handshake/receive(_:)-(RawSpan)``.
        case startTLS
        /// The handshake has ended: the next byte that is sent is a request.
        case done(ExportFacts)
    }

    private enum State: Sendable {
        case greeting
        case oldstyle
        /// An option was sent, and its answers are awaited.
        case option(HandshakeOption)
        case tls
        /// EXPORT_NAME was sent: size, flags, and zeroes or none.
        case facts(padding: Int)
        case done
        case failed
    }

    /// Bytes of the data of an option's reply at most.
    static let longestReply: UInt32 = 64 << 10
    /// Replies to one option at most, with the last.
    static let mostReplies = 64

    private let wishes: Wishes
    private var state = State.greeting
    private var received = Received()
    private var isFixed = false
    private var hasNoZeroes = false
    private var isEncrypted = false
    private var isStructured = false
    private var allocationContext: UInt32?
    private var export: (size: UInt64, flags: TransmissionFlags)?
    private var blocks = BlockSizes.unsaid
    private var replies = 0

    /// A handshake that has not begun: the server speaks first.
    public init(_ wishes: Wishes) { self.wishes = wishes }

    /// The handshake has come to an export.
    public var isDone: Bool { if case .done = state { true } else { false } }

    /// Bytes that end the connection politely where the handshake is given up: `NBD_OPT_ABORT` while options are discussed, else none.
    public var farewell: [UInt8] {
        if case .option = state, isFixed { HandshakeOption.abort.request() } else { [] }
    }

    /// Takes what was received, and says what to do, in this order. After an error nothing is taken.
    public mutating func receive(_ bytes: RawSpan) throws(HandshakeError) -> [Step] {
        received.append(bytes)
        var steps: [Step] = []
        do throws(HandshakeError) {
            while let step = try advance() {
                if let step { steps.append(step) }
                // A step is a question or the end: what stands behind its answer was never asked for.
                if step != nil, received.count > 0 { throw unasked(step) }
            }
        } catch {
            state = .failed
            throw error
        }
        return steps
    }

    /// The same of an array.
    public mutating func receive(_ bytes: [UInt8]) throws(HandshakeError) -> [Step] {
        // Bytes of any value are valid bytes.
        let span = bytes.span
        return try receive(unsafe span.bytes)
    }

    /// TLS has begun: what is received from now on came through it.
    public mutating func tlsStarted() throws(HandshakeError) -> [Step] {
        guard case .tls = state else { throw HandshakeError(.broken, "TLS was not agreed on") }
        isEncrypted = true
        return [ask(wishes.wantsStructuredReplies ? .structuredReply : .go)]
    }

    /// What it means that the server closed the connection now.
    public var endOfStream: HandshakeError {
        switch state {
        case .greeting, .oldstyle:
            HandshakeError(
                .broken,
                "the server closed the connection in the middle of its greeting: it may be no NBD server, or allow no "
                    + "more connections")
        case .option(.startTLS), .tls:
            HandshakeError(.withoutTLS, "the server closed the connection when it was asked for TLS")
        case .facts:
            HandshakeError(
                .refused,
                "the server closed the connection: it may have no export \(shownName), allow no more "
                    + "connections\(isEncrypted ? "" : ", or want TLS")")
        case .option, .done, .failed: HandshakeError(.refused, "the server closed the connection")
        }
    }

    private var shownName: String { "'\(ShownText.of(wishes.exportName))'" }

    private func unasked(_ step: Step?) -> HandshakeError {
        if step == .startTLS {
            return .broken("bytes in clear follow its consent to TLS: somebody may have put them there")
        }
        return .broken("it sends \(received.count) bytes that nobody asked for")
    }

    /// One message: nil: it is not all there; a nil step: nothing is to be done.
    private mutating func advance() throws(HandshakeError) -> Step?? {
        switch state {
        case .greeting: return try greet()
        case .oldstyle:
            guard let bytes = received.take(12 + HandshakeNumber.padding) else { return nil }
            // Sixteen flags of the handshake, which such servers do not have, and sixteen of transmission.
            return try finish(size: bytes.number(0), flags: bytes.number(10))
        case .option(let option): return try answer(to: option)
        case .facts(let padding):
            guard let bytes = received.take(10 + padding) else { return nil }
            return try finish(size: bytes.number(0), flags: bytes.number(8))
        case .tls:
            guard received.count == 0 else { throw .broken("bytes arrive in clear while TLS begins") }
            return nil
        case .done: return received.count > 0 ? .some(try refuseMore()) : nil
        case .failed: throw HandshakeError(.broken, "the handshake has failed before")
        }
    }

    private func refuseMore() throws(HandshakeError) -> Step? { throw unasked(nil) }

    private mutating func greet() throws(HandshakeError) -> Step?? {
        // A server of another protocol may send less than a greeting and wait.
        if received.count >= 8, received.number(0, UInt64.self) != HandshakeNumber.greeting {
            throw HandshakeError(.broken, "the server does not speak NBD")
        }
        guard received.count >= 16 else { return nil }
        switch received.number(8, UInt64.self) {
        case HandshakeNumber.options: break
        case HandshakeNumber.oldstyle:
            guard !wishes.isTLS else {
                throw HandshakeError(.withoutTLS, "the server is of the old style and has no TLS, which is demanded")
            }
            guard wishes.exportName.isEmpty else {
                throw HandshakeError(
                    .noSuchExport,
                    "the server is of the old style: it has one export without a name, and not \(shownName)")
            }
            _ = received.take(16)
            state = .oldstyle
            return .some(nil)
        default: throw HandshakeError(.broken, "the server speaks no style of NBD that is known")
        }
        guard let bytes = received.take(18) else { return nil }
        let flags = bytes.number(16, UInt16.self)
        isFixed = flags & HandshakeNumber.fixedNewstyle != 0
        hasNoZeroes = flags & HandshakeNumber.noZeroes != 0
        let known = flags & (HandshakeNumber.fixedNewstyle | HandshakeNumber.noZeroes)
        guard isFixed || !wishes.isTLS else {
            throw HandshakeError(.withoutTLS, "the server is too old for TLS, which is demanded")
        }
        let first: HandshakeOption =
            !isFixed ? .exportName : wishes.isTLS ? .startTLS : wishes.wantsStructuredReplies ? .structuredReply : .go
        guard case .send(let option) = ask(first) else { return .some(nil) }
        return .some(.send(UInt32(known).wire + option))
    }

    /// The bytes of an option; its answers are awaited.
    private mutating func ask(_ wanted: HandshakeOption) -> Step {
        let option = wanted == .go && wishes.avoidsGo ? .exportName : wanted
        let name = wishes.exportName
        state = option == .exportName ? .facts(padding: hasNoZeroes ? 0 : HandshakeNumber.padding) : .option(option)
        replies = 0
        let length = UInt32(truncatingIfNeeded: name.count)
        switch option {
        case .exportName: return .send(option.request(name))
        case .go:
            return .send(option.request(length.wire + name + UInt16(1).wire + HandshakeNumber.blockInformation.wire))
        case .setMetaContext:
            let query = HandshakeNumber.allocation
            return .send(
                option.request(
                    length.wire + name + UInt32(1).wire + UInt32(truncatingIfNeeded: query.count).wire + query))
        case .startTLS, .structuredReply, .abort: return .send(option.request())
        }
    }

    /// One reply to an option.
    private mutating func answer(to option: HandshakeOption) throws(HandshakeError) -> Step?? {
        if received.count >= 8, received.number(0, UInt64.self) != HandshakeNumber.reply {
            throw .broken("its reply to an option has no magic number")
        }
        guard received.count >= 20 else { return nil }
        let told: UInt32 = received.number(8)
        guard told == option.rawValue else {
            throw .broken("it answers option \(told), and was asked for \(option.rawValue)")
        }
        let type: UInt32 = received.number(12)
        let length: UInt32 = received.number(16)
        guard length <= Self.longestReply else { throw .broken("its reply to an option has \(length) bytes") }
        guard let message = received.take(20 + Int(length)) else { return nil }
        replies += 1
        guard replies <= Self.mostReplies else {
            throw .broken("it answers an option more than \(Self.mostReplies) times")
        }
        guard let answer = OptionAnswer(type) else {
            throw .broken("its reply to an option has the unknown type \(type)")
        }
        let data = Array(message.dropFirst(20))
        switch (option, answer) {
        case (_, .refused(let error)): return .some(try refused(option, error, ShownText.of(data)))
        case (_, .acknowledged):
            guard data.isEmpty else { throw .broken("its consent to an option has data") }
            return .some(try acknowledged(option))
        case (.go, .information):
            try inform(data)
            return .some(nil)
        case (.setMetaContext, .metaContext):
            guard data.count >= 4, Array(data.dropFirst(4)) == HandshakeNumber.allocation else {
                throw .broken("it selects a meta context that was not asked for")
            }
            guard allocationContext == nil else { throw .broken("it selects a meta context twice") }
            allocationContext = data.number(0)
            return .some(nil)
        default: throw .broken("its reply of type \(type) does not belong to option \(option.rawValue)")
        }
    }

    private mutating func acknowledged(_ option: HandshakeOption) throws(HandshakeError) -> Step? {
        switch option {
        case .startTLS:
            state = .tls
            return .startTLS
        case .structuredReply:
            isStructured = true
            return ask(.setMetaContext)
        case .setMetaContext: return ask(.go)
        case .go, .exportName, .abort:
            guard let export else { throw .broken("it does not say how large the export is") }
            return try finish(size: export.size, flags: export.flags.rawValue)
        }
    }

    /// An error of the server: the end, or the next option where it is about something that can be done without.
    private mutating func refused(
        _ option: HandshakeOption, _ error: UInt32, _ text: String
    ) throws(HandshakeError) -> Step? {
        let words = OptionAnswer.words(ofError: error) + (text.isEmpty ? "" : " (it says: \(text))")
        guard error != OptionAnswer.shutdown else { throw HandshakeError(.shutdown, "the server refuses: \(words)") }
        if option == .startTLS {
            throw HandshakeError(.withoutTLS, "the server refuses TLS, which is demanded: \(words)")
        }
        guard error != OptionAnswer.wantsTLS else {
            guard !isEncrypted else { throw .broken("it wants TLS, which has begun") }
            throw HandshakeError(.wantsTLS, "the server demands TLS: write nbds in the place of nbd; \(words)")
        }
        switch option {
        case .structuredReply: return ask(.go)
        case .setMetaContext:
            // What it selected before its error does not count.
            allocationContext = nil
            return ask(.go)
        case .go where error == OptionAnswer.unsupported:
            (export, blocks) = (nil, .unsaid)
            return ask(.exportName)
        case .go where error == OptionAnswer.unknownExport:
            throw HandshakeError(.noSuchExport, "the server refuses the export \(shownName): \(words)")
        default: throw HandshakeError(.refused, "the server refuses the export \(shownName): \(words)")
        }
    }

    /// `NBD_REP_INFO`; kinds that are not known are passed over.
    private mutating func inform(_ data: [UInt8]) throws(HandshakeError) {
        guard data.count >= 2 else { throw .broken("its information about the export has no kind") }
        switch data.number(0, UInt16.self) {
        case HandshakeNumber.exportInformation:
            guard data.count == 12 else { throw .broken("its size of the export has \(data.count) bytes") }
            export = (data.number(2), TransmissionFlags(rawValue: data.number(10)))
        case HandshakeNumber.blockInformation:
            guard data.count == 14 else { throw .broken("its block sizes have \(data.count) bytes") }
            blocks = try BlockSizes(minimum: data.number(2), preferred: data.number(6), payload: data.number(10))
        default: break
        }
    }

    private mutating func finish(size: UInt64, flags: UInt16) throws(HandshakeError) -> Step? {
        let facts = try ExportFacts(
            size: size, flags: TransmissionFlags(rawValue: flags), blocks: blocks, isStructured: isStructured,
            allocationContext: allocationContext)
        state = .done
        return .done(facts)
    }
}
