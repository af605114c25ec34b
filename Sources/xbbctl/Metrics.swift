// SPDX-License-Identifier: BSD-2-Clause
// xbbctl metrics: counters of all disks for Prometheus.
import ArgumentParser
import Glibc
import Support
import XBBControl

extension MetricsFormat: ExpressibleByArgument {}

extension XBBCtl {
    struct Metrics: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints counters, gauges and latency histograms of all devices for Prometheus.",
            discussion: """
                OpenMetrics text; with --format prometheus the older text format, which node_exporter and promtool read. \
                xbb-metrics.socket and xbb-textfile.timer use it; see xbbctl(8).
                """)
        @ParentCommand var parent: XBBCtl
        @Option(
            name: .customLong("format"),
            help: ArgumentHelp("The format: openmetrics or prometheus.", valueName: "format"))
        var textFormat = MetricsFormat.openmetrics
        @Option(
            help: ArgumentHelp("Replace a file with them, which all may read, instead of printing.", valueName: "file"),
            completion: .file())
        var output: String?
        @Flag(help: "Answer HTTP requests on the sockets that the service manager has opened (systemd.socket(5)).")
        var serve = false
        @OptionGroup var connection: Connection

        func validate() throws {
            if serve && output != nil { throw ValidationError("--serve and --output: one of them") }
        }

        func run() throws {
            try perform { () throws(ControlError) in
                let connection = connection.over(parent.connection)
                if serve {
                    signal(SIGPIPE, SIG_IGN)
                    let listeners = ServiceManager().takeListeners()
                    if listeners.isEmpty {
                        throw ControlError(
                            "--serve: the service manager has passed no socket; 'systemctl start xbb-metrics.socket' "
                                + "is how it does", status: .usage)
                    }
                    let server = try MetricsServer(listeners: listeners) { () throws(ControlError) in
                        try ControlClient(path: connection.socketPath, timeoutSeconds: 5).call(.metrics).value
                    }
                    return try server.run()
                }
                let text = MetricsReport.text(try connection.ask(.metrics).value, textFormat)
                if let output { return try PublishedFile.replace(output, with: text) }
                try PublishedFile.print(text)
            }
        }
    }
}
