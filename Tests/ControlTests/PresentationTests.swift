// SPDX-License-Identifier: BSD-2-Clause
import PluginHost
import Testing
import XBBHost

@testable import XBBControl
import Support

@Suite struct PresentationTests {
    @Test("columns are as wide as they must be") func table() {
        var table = TextTable([.words("NAME"), .numbers("COUNT"), .words("REST")])
        table.append(["a", "1", "x"])
        table.append(["longer", "123456"])
        #expect(table.lines == ["NAME     COUNT  REST", "a            1  x", "longer  123456"])
    }

    @Test("nobody who names a file writes to the terminal") func printable() {
        #expect(TextTable.printable("a\u{1b}[2Jb\nc\u{202e}d\u{9b}") == "a\\u{1b}[2Jb\\u{a}c\\u{202e}d\\u{9b}")
        #expect(TextTable.printable("Ünïcödé 文字") == "Ünïcödé 文字")
    }

    @Test("a list") func list() throws {
        let answer = try JSON(
            parsing: """
                {"vbds":[{"domid":1,"device":"xvda","kind":"vbd","worker":"running","pid":4711,"state":"connected",
                "mode":"w","format":"raw","path":"/disk.img","trouble":null},
                {"domid":12,"device":"xvdb","kind":"vbd","worker":"waiting","pid":null,"state":"initWait","mode":"r",
                "format":null,"path":null,"trouble":"cannot open"}]}
                """)
        #expect(
            Reports.list(answer) == [
                "DOMID  DEVICE  KIND  WORKER    PID  STATE      MODE  FORMAT  PATH       TROUBLE",
                "    1  xvda    vbd   running  4711  connected  w     raw     /disk.img",
                "   12  xvdb    vbd   waiting     -  initWait   r     -       -          cannot open",
            ])
    }

    @Test("counters, what they grow by, and latencies") func stats() throws {
        func answer(_ received: Int) throws -> JSON {
            try JSON(
                parsing: """
                    {"totals":{"reqs_received":\(received),"sleeps":3},
                    "queues":[{"reqs_received":1,"sleeps":1},{"reqs_received":2,"sleeps":2}],
                    "latency_ns":{"read":{"count":10,"p50":999,"p90":1000,"p99":123456,"p999":98765432,"max":12345678901},
                    "write":{"count":0,"p50":0,"p90":0,"p99":0,"p999":0,"max":0}}}
                    """)
        }
        let lines = Reports.stats(try answer(300), earlier: try answer(100), seconds: 2)
        #expect(
            lines == [
                "COUNTER        TOTAL  PER-SECOND  QUEUE-0  QUEUE-1",
                "reqs_received    300         100        1        2",
                "sleeps             3           -        1        2",
                "",
                "LATENCY  COUNT    p50    p90      p99    p999    max",
                "read        10  999ns  1.0us  123.4us  98.7ms  12.3s",
                "write        0      -      -        -       -      -",
            ])
    }

    @Test("nested members have their names after a point") func show() throws {
        let answer = try JSON(parsing: "{\"pid\":1,\"tunables\":{\"poll_us\":0},\"abi\":null,\"read_only\":false}")
        #expect(
            Reports.show(answer) == [
                "pid               1", "tunables.poll_us  0", "abi               -", "read_only         no",
            ])
    }

    @Test("plugins") func plugins() throws {
        let answer = try JSON(
            parsing: """
                {"plugins":[{"name":"file","version":"0.1","description":"raw files","formats":["raw"],"path":"/p.so",
                "thread_model":"parallel","blocking":false,
                "options":[{"name":"direct","type":"bool","default":null,"help":"bypass the page cache"}]},
                {"name":"bad","error":"no entry\\u001b"}]}
                """)
        #expect(
            Reports.plugins(answer) == [
                "file 0.1: raw files", "  formats       raw", "  thread_model  parallel", "  blocking      no",
                "  path          /p.so", "  OPTION  TYPE  DEFAULT  HELP",
                "  direct  bool  -        bypass the page cache", "", "bad: cannot be loaded: no entry\\u{1b}",
            ])
    }

    @Test("answers that are not as expected are shown as far as they go") func oddAnswers() throws {
        for text in [
            "null", "[]", "1", "{}", "{\"vbds\":1,\"plugins\":{},\"totals\":[],\"queues\":{},\"latency_ns\":2}",
        ] {
            let answer = try JSON(parsing: text)
            #expect(Reports.list(answer).count == 1)
            _ = (Reports.show(answer), Reports.plugins(answer))
            #expect(Reports.stats(answer, earlier: answer).count == 3)
        }
        let odd = try JSON(parsing: "{\"totals\":{\"a\":\"x\",\"b\":-1,\"c\":1e99}}")
        #expect(Reports.stats(odd, earlier: odd).count == 6)
    }
}
