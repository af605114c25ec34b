// SPDX-License-Identifier: BSD-2-Clause
// Metrics of real disks, read by Prometheus itself.
import Base
import Blkfront
import CLinux
import Foundation
import Support
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct MonitoringTests {
        /// The value of a sample of `xbbctl metrics`; nil where there is none.
        private func value(_ lab: LibxlLab, _ sample: String) throws -> Double? {
            try lab.administer("metrics").split(separator: "\n").first { $0.hasPrefix("\(sample) ") }
                .flatMap { Double($0.dropFirst(sample.count + 1)) }
        }

        @Test func metricsAreWhatTheGuestDid() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.store.write("/local/domain/\(guest.id)/name", "web")
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            let load = try verifiedLoad(device, count: 200)
            #expect(load.isGood, "\(load)")
            let disk = #"domain="web",vdev="xvda",kind="vbd""#
            var sum = 0.0
            for operation in ["read", "write"] {
                let labels = "\(disk),operation=\"\(operation)\""
                let done = try #require(try value(lab, "xbb_requests_total{\(labels)}"))
                #expect(done > 0)
                sum += done
                #expect(try value(lab, "xbb_request_duration_seconds_count{\(labels)}") == done)
                #expect(try value(lab, "xbb_request_duration_seconds_bucket{\(labels),le=\"+Inf\"}") == done)
                #expect(try #require(try value(lab, "xbb_request_duration_seconds_sum{\(labels)}")) > 0)
                #expect(
                    try #require(try value(lab, "xbb_\(operation == "read" ? "read" : "written")_bytes_total{\(disk)}"))
                        >= done * 512)
            }
            #expect(sum >= 200)
            #expect(try value(lab, "xbb_connected{\(disk)}") == 1 && value(lab, "xbb_worker_up{\(disk)}") == 1)
            #expect(try value(lab, "xbb_size_bytes{\(disk)}") == 16_777_216)
            #expect(try value(lab, "xbb_requests_in_flight{\(disk)}") == 0)
            #expect(try value(lab, "xbb_storage_errors_total{\(disk)}") == nil)
            // They go on with another worker, which is counted.
            try lab.administer("upgrade")
            let after = try #require(try value(lab, "xbb_requests_total{\(disk),operation=\"read\"}"))
            #expect(after > 0)
            #expect(try value(lab, "xbb_worker_starts_total{\(disk)}") == 2)
            try device.close()
            lab.stop()
        }

        @Test func aWorkerThatIsStoppedHoldsUpNobody() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.store.write("/local/domain/\(guest.id)/name", "web")
            try lab.administer("attach \(guest.id) xvda raw:\(try lab.image("a.img"))")
            let stopped = try #require(try lab.worker())
            try lab.administer("attach \(guest.id) xvdb raw:\(try lab.image("b.img"))")
            kill(stopped, SIGSTOP)
            defer { kill(stopped, SIGCONT) }
            let disk = "domain=\"web\",vdev"
            #expect(try value(lab, "xbb_worker_up{\(disk)=\"xvda\",kind=\"vbd\"}") == 0)
            #expect(try value(lab, "xbb_worker_up{\(disk)=\"xvdb\",kind=\"vbd\"}") == 1)
            #expect(try value(lab, "xbb_size_bytes{\(disk)=\"xvdb\",kind=\"vbd\"}") == 16_777_216)
            kill(stopped, SIGCONT)
            try eventually("it answers again") { try value(lab, "xbb_worker_up{\(disk)=\"xvda\",kind=\"vbd\"}") == 1 }
            lab.stop()
        }

        @Test(.enabled(if: FileManager.default.fileExists(atPath: "/usr/bin/prometheus"), "apt-get install prometheus"))
        func prometheusScrapesAndAnswers() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.store.write("/local/domain/\(guest.id)/name", "web")
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            let (metrics, port) = try listeningSocket()
            // Its own port is free now, and Prometheus takes it at once.
            let ownPort = try listeningSocket().port
            let folder = "\(lab.directory)/prometheus"
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
            try """
            global: { scrape_interval: 1s, scrape_timeout: 1s }
            scrape_configs:
              - { job_name: xbb, static_configs: [ { targets: [ "127.0.0.1:\(port)" ] } ] }
            """.write(toFile: "\(folder)/prometheus.yml", atomically: true, encoding: .utf8)
            let serve =
                "LISTEN_PID=$$ LISTEN_FDS=1 exec '\(buildDirectory)/xbbctl' metrics --serve "
                + "--socket '\(lab.directory)/run/xbbd.sock'"
            let (code, server) = startProgram("/bin/sh", ["sh", "-c", serve], kept: metrics.raw)
            try #require(code == 0)
            let (started, prometheus) = startProgram(
                "/usr/bin/prometheus",
                [
                    "prometheus", "--config.file=\(folder)/prometheus.yml", "--storage.tsdb.path=\(folder)/data",
                    "--web.listen-address=127.0.0.1:\(ownPort)", "--log.level=error",
                ])
            try #require(started == 0)
            defer {
                for process in [server, prometheus] {
                    kill(process, SIGKILL)
                    var status: Int32 = 0
                    waitpid(process, &status, 0)
                }
            }
            func ask(_ query: String) throws -> String {
                (try? LibxlLab.shell("promtool query instant http://127.0.0.1:\(ownPort) '\(query)' 2>&1")) ?? ""
            }
            try eventually("Prometheus to have scraped twice: \(try ask("up"))", seconds: 60) {
                try ask("count_over_time(up[1m]) >= 2 and up == 1").has("job=\"xbb\"")
            }
            #expect(try verifiedLoad(device, count: 500).isGood)
            let labels = "{domain=\"web\",vdev=\"xvda\"}"
            for query in [
                "increase(xbb_read_bytes_total\(labels)[1m]) > 0",
                "sum by (domain, vdev) (rate(xbb_requests_total\(labels)[1m])) > 0",
                "histogram_quantile(0.99, sum by (le, vdev) (rate(xbb_request_duration_seconds_bucket\(labels)[1m]))) > 0",
                "rate(xbb_request_duration_seconds_sum\(labels)[1m]) > 0",
                "xbb_connected\(labels) * on (domain, vdev, kind) group_left (path) xbb_disk_info == 1",
            ] {
                try eventually("an answer to \(query)", seconds: 60) { try ask(query).has("xvda") }
            }
            try device.close()
            lab.stop()
        }

        @Test(.enabled(if: FileManager.default.fileExists(atPath: "/usr/bin/promtool"), "apt-get install prometheus"))
        func theDashboardAsksForMetricsThatThereAre() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.administer("attach \(guest.id) xvda raw:\(try lab.image())")
            let text = try lab.administer("metrics --format prometheus")
            let file = "\(packageDirectory)/packaging/xbb-dashboard.json"
            let json = try JSONSerialization.jsonObject(with: Data(contentsOf: URL(fileURLWithPath: file)))
            let panels = try #require((json as? [String: Any])?["panels"] as? [[String: Any]])
            #expect(panels.contains { $0["type"] as? String == "heatmap" })
            // Those that are absent until something happens.
            let late = ["xbb_storage_errors_total", "xbb_last_error_timestamp_seconds"]
            var rules = "groups:\n- name: a\n  rules:\n"
            for panel in panels {
                for target in try #require(panel["targets"] as? [[String: Any]]) {
                    var query = try #require(target["expr"] as? String)
                    for name in query.split(whereSeparator: { !$0.isLetter && $0 != "_" }) where name.hasPrefix("xbb_")
                    {
                        let isThere = text.has("\n\(name){") || text.has("\n\(name) ") || name.hasPrefix("xbb_limit_")
                        #expect(isThere || late.contains(String(name)), "\(name)")
                    }
                    query = query.replacingOccurrences(of: "$__rate_interval", with: "1m")
                    query = query.replacingOccurrences(of: "\"", with: "\\\"")
                    rules += "  - { record: a, expr: \"\(query)\" }\n"
                }
            }
            try rules.write(toFile: "\(lab.directory)/rules.yml", atomically: true, encoding: .utf8)
            _ = try LibxlLab.shell("promtool check rules --lint=none '\(lab.directory)/rules.yml'")
            lab.stop()
        }
    }
}
