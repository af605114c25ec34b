// SPDX-License-Identifier: BSD-2-Clause
// The counters of all disks at once: all workers are asked at the same time, and one that does not answer holds up nobody.
import Base
import CLinux
import Support

/// An answer that is complete when all workers have said something, or their time is over.
struct TopAnswer {
    let client: ControlServer.ClientID
    /// The rows of `list`.
    let rows: [JSON]
    /// Calls without an answer.
    var waiting: Set<UInt64> = []
    /// The counters of each VBD, by its name.
    var stats: [String: JSON] = [:]

    /// The rows, with counters where there are some.
    var json: JSON {
        .object([
            (
                "vbds",
                .array(
                    rows.map { row in
                        .object(row.members + [("stats", row["vbd"]?.string.flatMap { stats[$0] } ?? .null)])
                    })
            )
        ])
    }
}

extension Supervisor {
    /// How long workers have for their counters, in ns: somebody looks at the screen.
    private static let topLimit: UInt64 = 500 * RestartPolicy.millisecond

    /// Asks all workers for their counters.
    func top(for client: ControlServer.ClientID) throws(ControlError) {
        lastTop += 1
        let number = lastTop
        tops[number] = TopAnswer(client: client, rows: try list())
        for record in records.values where record.process != nil {
            lastCall += 1
            let id = lastCall
            let name = "\(record.address)"
            do throws(ControlError) {
                calls[id] = try WorkerCall(
                    path: directory.workerSocket(record.address), line: "stats", loop: loop, limit: Self.topLimit
                ) { [unowned self] result in
                    calls[id] = nil
                    tops[number]?.waiting.remove(id)
                    if case .success(let text) = result {
                        do throws(JSONError) { tops[number]?.stats[name] = try JSON(parsing: text) } catch {}
                    }
                    finishTop(number)
                }
                tops[number]?.waiting.insert(id)
            } catch {
                // It has no numbers, as one that does not answer.
            }
        }
        finishTop(number)
    }

    private func finishTop(_ number: UInt64) {
        guard let top = tops[number], top.waiting.isEmpty else { return }
        tops[number] = nil
        answer(top.json, to: top.client)
    }
}
