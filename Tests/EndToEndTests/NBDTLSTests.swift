// SPDX-License-Identifier: BSD-2-Clause
// Exports in TLS: who is served, and whom the plugin refuses, in which words.
import Blkfront
import Foundation
import Testing

/// Certificates and keys of a test, made by certtool(1) and psktool(1).
private struct Keys {
    let directory: String

    init(in directory: String) throws {
        self.directory = directory
        // "ours" is what clients believe and have; "server" is what it says of localhost; the others are wrong in one way each.
        let script = """
            set -e; cd '\(directory)'; exec 2>&1
            key() { certtool --generate-privkey --key-type ecdsa --outfile "$1" >/dev/null; }
            authority() { # FOLDER
                mkdir -p $1; key $1/ca-key.pem
                printf 'cn = "authority %s"\\nca\\ncert_signing_key\\n' $1 >ca.info
                certtool --generate-self-signed --load-privkey $1/ca-key.pem --template ca.info --outfile $1/ca-cert.pem >/dev/null
            }
            certificate() { # FOLDER AUTHORITY NAME LINES: of server and client
                mkdir -p $1; [ -e $1/ca-cert.pem ] || cp $2/ca-cert.pem $1
                for end in server client; do
                    key $1/$end-key.pem
                    printf 'cn = "%s"\\ndns_name = "%s"\\n%s\\ntls_www_%s\\nsigning_key\\n' "$3" "$3" "$4" $end >$end.info
                    certtool --generate-certificate --load-ca-certificate $2/ca-cert.pem --load-ca-privkey $2/ca-key.pem \\
                        --load-privkey $1/$end-key.pem --template $end.info --outfile $1/$end-cert.pem >/dev/null
                done
            }
            authority root; authority stranger
            certificate server root localhost 'ip_address = "127.0.0.1"'
            certificate elsewhere root elsewhere.example ''
            certificate expired root localhost 'activation_date = "2020-01-01 00:00:00"
            expiration_date = "2020-02-01 00:00:00"'
            certificate foreign stranger localhost ''
            mkdir nobody; cp root/ca-cert.pem nobody
            psktool -u xen -p ours.psk >/dev/null; psktool -u xen -p theirs.psk >/dev/null
            """
        try LibxlLab.shell(script)
    }

    subscript(name: String) -> String { "\(directory)/\(name)" }
}

extension EndToEnd {
    @Suite struct NBDTLSTests {
        private func tlsServer(_ lab: NBDLab, _ place: NBDServer.Place = .unix, _ words: String...) throws -> NBDServer
        {
            try lab.serve(.nbdkit, place, ["--tls=require"] + words + ["file", "IMAGE"])
        }

        private func isServed(_ lab: NBDLab, _ uri: String, _ device: String, _ more: String = "") throws -> FrontDevice
        {
            try lab.attach(uri, device, more)
            let front = try lab.connect(device)
            let report = try LoadRun(front, mixedPlan { $0.count = 100 }).run()
            #expect(report.isGood && report.verifiedBlocks > 0, "\(uri): \(report.text) \(lab.lab.log)")
            return front
        }

        /// By the name in the URI, by an address, by a name that an option gives, with and without a certificate of the client's own.
        @Test func aServerIsKnownByItsCertificate() throws {
            let lab = try NBDLab()
            let keys = try Keys(in: lab.directory)
            let trust = "tls-certificates=\(keys["server"])"
            let tcp = try tlsServer(lab, .tcp("127.0.0.1"), "--tls-certificates=\(keys["server"])", "--tls-verify-peer")
            let unix = try tlsServer(lab, .unix, "--tls-certificates=\(keys["server"])")
            let port = tcp.uri().split(separator: ":").last ?? ""
            let devices = [
                try isServed(lab, "nbds://localhost:\(port)?\(trust)", "xvda"),
                try isServed(lab, tcp.uri("nbds", trust), "xvdb"),
                try isServed(
                    lab, unix.uri("nbds", "tls-hostname=localhost"), "xvdc",
                    "--option tls-certificates=\(keys["nobody"])"),
            ]
            // The keys are in memory: a worker that follows reads them anew, with the rights that it has then.
            try lab.killWorker("xvda")
            let report = try LoadRun(devices[0], mixedPlan { $0.count = 100 }).run()
            #expect(report.isGood, "\(report.text) \(lab.lab.log)")
            for device in devices { try device.close() }
            try lab.finish()
        }

        @Test func whoMayNotBeBelievedIsRefused() throws {
            let lab = try NBDLab()
            let keys = try Keys(in: lab.directory)
            let trust = "tls-certificates=\(keys["server"])"
            func refused(_ folder: String, _ text: String) throws {
                let server = try tlsServer(lab, .unix, "--tls-certificates=\(keys[folder])")
                let words = try lab.refusal(server.uri("nbds", trust, "tls-hostname=localhost"))
                #expect(
                    words.has("TLS: the server's certificate is refused for 'localhost'") && words.has(text),
                    "\(folder): \(words)")
            }
            try refused("elsewhere", "name in the certificate does not match")
            try refused("expired", "expired")
            try refused("foreign", "issuer is unknown")
            // Whoever says that it does not matter is served.
            let expired = try tlsServer(lab, .unix, "--tls-certificates=\(keys["expired"])")
            let device = try isServed(lab, expired.uri("nbds", trust, "tls-verify-peer=0"), "xvda")
            try device.close()
            // A server that wants to know the client.
            let strict = try tlsServer(lab, .unix, "--tls-certificates=\(keys["server"])", "--tls-verify-peer")
            let words = try lab.refusal(
                strict.uri("nbds", "tls-certificates=\(keys["nobody"])", "tls-hostname=localhost"))
            #expect(words.has("it may not believe this client's certificate"), "\(words)")
            try lab.finish()
        }

        @Test func bothEndsWantTLSOrNeither() throws {
            let lab = try NBDLab()
            let keys = try Keys(in: lab.directory)
            let plain = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let safe = try tlsServer(lab, .unix, "--tls-certificates=\(keys["server"])")
            let trust = ["tls-certificates=\(keys["server"])", "tls-hostname=localhost"].joined(separator: "&")
            for (uri, text) in [
                (plain.uri("nbds", trust), "the server refuses TLS, which is demanded"),
                (safe.uri("nbd"), "the server demands TLS: write nbds in the place of nbd"),
                (
                    safe.uri("nbds", "tls-certificates=\(keys["none"])", "tls-hostname=localhost"),
                    "there is no \(keys["none"])/ca-cert.pem"
                ),
                (safe.uri("nbds", "tls-certificates=\(keys["server"])"), "tls-hostname"),
                (safe.uri("nbds", "tls-type=anon"), "anonymous TLS is not supported"),
            ] {
                let words = try lab.refusal(uri)
                #expect(words.has(text), "\(uri): \(words)")
            }
            try lab.finish()
        }

        @Test func aKeyThatBothKnowIsEnough() throws {
            let lab = try NBDLab()
            let keys = try Keys(in: lab.directory)
            let server = try tlsServer(lab, .unix, "--tls-psk=\(keys["ours.psk"])")
            let device = try isServed(lab, server.uri("nbds", user: "xen@", "tls-psk-file=\(keys["ours.psk"])"), "xvda")
            let other = try isServed(
                lab, server.uri("nbds", "tls-type=psk"), "xvdb",
                "--option tls-psk-file=\(keys["ours.psk"]) --option tls-username=xen")
            for (uri, text) in [
                (server.uri("nbds", user: "xen@", "tls-psk-file=\(keys["theirs.psk"])"), "TLS: "),
                (
                    server.uri("nbds", user: "nobody@", "tls-psk-file=\(keys["ours.psk"])"),
                    "has no line for user 'nobody'"
                ),
                (server.uri("nbds", user: "xen@", "tls-psk-file=\(keys["no.psk"])"), "there is no \(keys["no.psk"])"),
            ] {
                let words = try lab.refusal(uri)
                #expect(words.has(text), "\(uri): \(words)")
            }
            try lab.finish(device, other)
        }

        /// Nobody can read the answers of a dead process: its connection ends in order before the next one begins.
        @Test func aKillInTheMiddleIsFenced() throws {
            let lab = try NBDLab()
            let keys = try Keys(in: lab.directory)
            let server = try lab.serve(
                .nbdkit, .unix, ["--tls=require", "--tls-psk=\(keys["ours.psk"])", "file", "IMAGE"])
            try lab.attach(server.uri("nbds", user: "xen@", "tls-psk-file=\(keys["ours.psk"])"))
            let device = try lab.connect()
            var kills = 0
            let report = try inBackground({ try LoadRun(device, mixedPlan { $0.duration = 3_000_000_000 }).run() }) {
                guard kills < 2, lab.lab.log.components(separatedBy: "connected to domain").count > kills + 1 else {
                    return
                }
                usleep(100_000)
                let process = try lab.worker()
                kill(process, SIGKILL)
                kills += 1
                try lab.awaitWorker(after: process)
            }
            #expect(report.isGood && kills > 0, "\(report.text) \(lab.lab.log)")
            try lab.finish(device)
        }
    }
}
