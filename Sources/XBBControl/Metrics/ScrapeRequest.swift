// SPDX-License-Identifier: BSD-2-Clause
// As much of HTTP as a scraper needs (RFC 9112): one request on a connection, one answer. Pure.

/// A scraper's request, and the heads of answers.
enum ScrapeRequest: Equatable {
    /// The metrics, or the head of the answer alone.
    case metrics(MetricsFormat, isHead: Bool)
    /// This is answered instead.
    case refused(Refusal)

    enum Refusal: String {
        case badRequest = "400 Bad Request"
        case notFound = "404 Not Found"
        case method = "405 Method Not Allowed"
        case tooLong = "431 Request Header Fields Too Large"
        case unavailable = "503 Service Unavailable"
    }

    /// The longest request in bytes.
    static let longest = 8192

    /// Reads what a client has sent so far; nil: it is not complete.
    init?(_ bytes: [UInt8]) {
        guard let head = Self.head(bytes) else {
            if bytes.count < Self.longest { return nil }
            self = .refused(.tooLong)
            return
        }
        let lines = head.split(separator: UInt8(ascii: "\n")).map { line in
            String(decoding: line.last == UInt8(ascii: "\r") ? line.dropLast() : line, as: UTF8.self)
        }
        let words = (lines.first ?? "").split(separator: " ", omittingEmptySubsequences: false)
        guard words.count == 3, words[2].hasPrefix("HTTP/1."), words[1].hasPrefix("/") || words[1].hasPrefix("http")
        else {
            self = .refused(.badRequest)
            return
        }
        guard words[0] == "GET" || words[0] == "HEAD" else {
            self = .refused(.method)
            return
        }
        let path = words[1].prefix { $0 != "?" }
        guard path == "/metrics" || (path.hasPrefix("http://") && path.hasSuffix("/metrics")) else {
            self = .refused(.notFound)
            return
        }
        let wantsOpen = lines.dropFirst().contains { line in
            line.lowercased().hasPrefix("accept:") && line.contains("application/openmetrics-text")
        }
        self = .metrics(wantsOpen ? .openmetrics : .prometheus, isHead: words[0] == "HEAD")
    }

    /// The lines before the empty one; nil where there is none yet.
    private static func head(_ bytes: [UInt8]) -> ArraySlice<UInt8>? {
        let limit = min(bytes.count, longest)
        var lineStart = 0
        for index in 0..<limit where bytes[index] == UInt8(ascii: "\n") {
            let length = index - lineStart
            if length == 0 || (length == 1 && bytes[lineStart] == UInt8(ascii: "\r")) { return bytes[..<lineStart] }
            lineStart = index + 1
        }
        return nil
    }

    /// An answer with a text.
    static func answer(_ status: String, _ contentType: String, _ body: [UInt8]) -> [UInt8] {
        head(status, contentType, body.count) + body
    }

    /// The head of an answer, with its empty line.
    static func head(_ status: String, _ contentType: String, _ length: Int) -> [UInt8] {
        Array(
            ("HTTP/1.1 \(status)\r\nContent-Type: \(contentType)\r\nContent-Length: \(length)\r\n"
                + "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nAllow: GET, HEAD\r\n"
                + "Connection: close\r\n\r\n").utf8)
    }

    static func answer(_ refusal: Refusal, _ text: String? = nil) -> [UInt8] {
        answer(refusal.rawValue, "text/plain; charset=utf-8", Array("\(text ?? refusal.rawValue)\n".utf8))
    }
}
