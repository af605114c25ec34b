// SPDX-License-Identifier: BSD-2-Clause
// URIs of exports: the examples of the specification and of nbd_connect_uri(3), and what is refused, with the words for it.
import NBD
import Testing

private func refusal(_ text: String) -> String {
    do throws(ExportURIError) {
        let uri = try ExportURI(text)
        Issue.record("\(text) is accepted as \(uri)")
        return ""
    } catch {
        return error.message
    }
}

@Suite struct ExportURITests {
    /// The table of doc/uri.md.
    @Test func exportNamesAreThoseOfTheSpecification() throws {
        for (text, name) in [
            ("nbd://example.com/disk", "disk"), ("nbd+unix:///disk?socket=sock", "disk"), ("nbd://example.com/", ""),
            ("nbd://example.com", ""), ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"), ("nbd://h/%C3%bc+/a", "ü+/a"),
        ] {
            #expect(try ExportURI(text).exportName == Array(name.utf8), "\(text)")
        }
    }

    @Test func transportsAreUnderstood() throws {
        for (text, transport, isTLS) in [
            ("nbd://example.com", ExportURI.Transport.tcp(host: "example.com", port: 10809), false),
            ("nbds://example.com:1", .tcp(host: "example.com", port: 1), true),
            ("NBD://192.0.2.1:65535/x", .tcp(host: "192.0.2.1", port: 65535), false),
            ("nbd://h:/x", .tcp(host: "h", port: 10809), false),
            ("nbd://[2001:db8::1]/x", .tcp(host: "2001:db8::1", port: 10809), false),
            ("nbds://[::1]:10810", .tcp(host: "::1", port: 10810), true),
            ("nbd://[fe80::1%25eth0]:5/x", .tcp(host: "fe80::1%eth0", port: 5), false),
            ("nbd+unix:///?socket=/run/nbd.sock", .unix(path: "/run/nbd.sock"), false),
            ("nbds+unix:///x?socket=%2Frun%2Fa%20b", .unix(path: "/run/a b"), true),
            ("nbd+unix:///?socket=%00/abstract", .unix(path: "\0/abstract"), false),
            ("nbd+vsock:///", .vsock(cid: 2, port: 10809), false),
            ("nbds+vsock://7:70000/x", .vsock(cid: 7, port: 70000), true),
        ] {
            let uri = try ExportURI(text)
            #expect(uri.transport == transport && uri.isTLS == isTLS, "\(text)")
        }
    }

    @Test func parametersOfTLSAreUnderstood() throws {
        let keys = try #require(
            try ExportURI("nbds+unix://alice@/?socket=/s&tls-psk-file=/etc/psk&tls-hostname=h&tls-type=psk").tls)
        #expect(keys.userName == "alice" && keys.sharedKeyFile == "/etc/psk" && keys.hostName == "h")
        #expect(keys.authentication == .sharedKey && keys.verifiesPeer && keys.certificates == nil)
        let certificates = try #require(try ExportURI("nbds://h/?tls-certificates=/a%26b&tls-verify-peer=0").tls)
        #expect(certificates.certificates == "/a&b" && !certificates.verifiesPeer)
        #expect(try ExportURI("nbds://h/?tls-verify-peer=1").tls?.verifiesPeer == true)
        #expect(try ExportURI("nbd://h/").tls == nil)
    }

    /// Words for the administrator: what is wrong, and often what to write.
    @Test func whatIsWrongIsSaid() {
        for (text, words) in [
            ("", "begins with nbd://"), ("nbd:server:10809:exportname=x", "begins with nbd://"),
            ("http://h/", "begins with nbd://"), ("nbd+ssh://h/", "begins with nbd://"),
            ("nbd:/h", "begins with nbd://"),
            ("nbd:///x", "no host"), ("nbd://h:0/x", "1 to 65535"), ("nbd://h:65536", "1 to 65535"),
            ("nbd://h:x", "port is no number"), ("nbd://h:+1", "port is no number"), ("nbd://::1/x", "in brackets"),
            ("nbd://[::1", "no ]"), ("nbd://[::1]x", "behind the ]"), ("nbd://[zz]", "no IPv6"),
            ("nbd://[12]", "no IPv6"),
            ("nbd://[::1%25]", "zone"), ("nbd://a%2Fb/", "no name and no address"), ("nbd://h/a b", "%20"),
            ("nbd://h/a\n", "%20"), ("nbd://h/%zz", "%25"), ("nbd://h/%4", "%25"), ("nbd://h/a#b", "%23"),
            ("nbd://h/%00", "without NUL"), ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/" + String(repeating: "a", count: 4097), "more than 4096"),
            ("nbd://h/" + String(repeating: "a", count: 40000), "more than 32768"),
            ("nbd+unix:///x", "socket is missing"), ("nbd+unix:///x?socket=", "socket is missing"),
            ("nbd+unix://h/x?socket=/s", "three slashes"), ("nbd+unix://:1/x?socket=/s", "three slashes"),
            ("nbd+unix:///?socket=/" + String(repeating: "a", count: 107), "107 bytes"),
            ("nbd+unix:///?socket=/a%00", "NUL"), ("nbd+unix:///?socket=%00", "NUL"),
            ("nbd://h/?socket=/s", "for nbd+unix"), ("nbd+vsock://h/", "CID"), ("nbd+vsock://4294967296/", "CID"),
            ("nbd://alice@h/", "for TLS"), ("nbds://alice:secret@h/", "no password"),
            ("nbds://@h/", "user name is empty"),
            ("nbd://h/?tls-hostname=x", "for TLS"), ("nbds://h/?tls-verify-peer=yes", "0 or 1"),
            ("nbds://h/?tls-type=tls", "anon, x509 or psk"), ("nbds://h/?tls-hostname=", "empty"),
            ("nbds://h/?tls-hostname=%00", "NUL"), ("nbds://h/?tls-psk-file=/a&tls-certificates=/b", "exclude"),
            ("nbds://h/?tls-hostname=a&tls-hostname=b", "twice"), ("nbds://h/?tls-hostname", "no value"),
            ("nbd://h/?x-debug=1", "unknown parameter 'x-debug'"), ("nbd://h/?%1b=1", "unknown parameter '?'"),
        ] {
            #expect(refusal(text).contains(words), "\(text.prefix(80)): \(refusal(text))")
        }
        #expect(!refusal("nbds://alice:secret@h/").contains("secret"))
    }

    @Test func theLongestNamesAreAccepted() throws {
        let name = String(repeating: "%41", count: 4096)
        #expect(try ExportURI("nbd://h/\(name)").exportName.count == 4096)
        let path = "/" + String(repeating: "a", count: 106)
        #expect(try ExportURI("nbd+unix:///?socket=\(path)").transport == .unix(path: path))
    }

    /// Transport and export, without user and files; it leads to the same export.
    @Test func theTextForMessagesHasNoSecrets() throws {
        for (text, shown) in [
            ("nbds://alice@h:5/a%20b?tls-psk-file=/etc/key", "nbds://h:5/a%20b"), ("nbd://h:10809", "nbd://h/"),
            ("nbd+unix:///x?socket=/run/a%26", "nbd+unix:///x?socket=/run/a%26"),
            ("nbd://[fe80::1%25eth0]/", "nbd://[fe80::1%25eth0]/"), ("nbds+vsock://3/%1b", "nbds+vsock://3/%1B"),
        ] {
            let uri = try ExportURI(text)
            #expect(uri.description == shown)
            let again = try ExportURI(shown)
            #expect(again.transport == uri.transport && again.exportName == uri.exportName && again.isTLS == uri.isTLS)
        }
    }
}
