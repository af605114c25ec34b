// SPDX-License-Identifier: BSD-2-Clause
// What a server does that ends its connection.

/// A rule of the transmission phase that a server broke: nothing more can be read from it.
public enum ProtocolError: Error, Equatable, BitwiseCopyable, Sendable {
    /// A message that begins with no magic number of a reply.
    case magic(UInt32)
    /// A reply to a request that does not wait.
    case unknownCookie
    /// A structured reply, which was not agreed on.
    case structuredReply
    /// A simple reply to a read or a block status where replies are structured.
    case simpleReply(Command.Kind)
    /// A simple reply after chunks of a structured one.
    case simpleReplyAfterChunks
    /// A chunk of a type that is unknown or does not belong to the request.
    case chunk(type: UInt16, Command.Kind)
    /// A chunk whose length is not that of its type.
    case chunkLength(type: UInt16, UInt32)
    /// Bytes, or an error's place, outside of the request.
    case outside
    /// Bytes that had arrived before.
    case overlap
    /// Bytes in more places than are kept.
    case scattered
    /// Success without all bytes of a read, or without extents.
    case incomplete(Command.Kind)
    /// A chunk without content that is not the last.
    case emptyChunk
    /// An error chunk whose error is 0.
    case errorZero
    /// Extents of another meta context, or none that was agreed on.
    case context(UInt32)
    /// An extent without length, or more of them than the request has bytes.
    case extents
    /// The reader was used after another error.
    case failedBefore

    /// One sentence for the operator.
    public var message: String { "the NBD server breaks the protocol: " + words }

    private var words: String {
        switch self {
        case .magic(let number): "a reply begins with 0x\(String(number, radix: 16))"
        case .unknownCookie: "it answers a request that was not sent, or a second time"
        case .structuredReply: "it sends a structured reply, which was not agreed on"
        case .simpleReply(let kind): "it answers a \(kind.words) with a simple reply"
        case .simpleReplyAfterChunks: "it sends a simple reply after chunks of a structured one"
        case .chunk(let type, let kind): "a chunk of type \(type) answers a \(kind.words)"
        case .chunkLength(let type, let length): "a chunk of type \(type) has \(length) bytes"
        case .outside: "a chunk is about bytes outside of the request"
        case .overlap: "bytes of a read arrive twice"
        case .scattered: "the bytes of a read arrive in more than \(ReadCover.most) separate places"
        case .incomplete(let kind): "it answers a \(kind.words) with success before all of it has arrived"
        case .emptyChunk: "an empty chunk is not the last one"
        case .errorZero: "an error chunk has no error"
        case .context(let number): "it sends extents of the meta context \(number), which was not asked for"
        case .extents: "its extents do not lie in the request"
        case .failedBefore: "nothing is read after an error"
        }
    }
}

extension Command.Kind {
    /// For messages.
    var words: String {
        switch self {
        case .read: "read"
        case .write: "write"
        case .disconnect: "disconnect"
        case .flush: "flush"
        case .trim: "trim"
        case .cache: "cache"
        case .writeZeroes: "write of zeroes"
        case .blockStatus: "block status"
        }
    }
}
