// SPDX-License-Identifier: BSD-2-Clause
// probe(): pure, bounded, always the same answer. inspect() of files that are not images.
import PluginHost
import CLinux
import CPluginHarness
import Glibc
import PluginAPI
import Support

extension Check {
    static let probe = [
        Check(.probe, "pure", "probe() makes no system call and gives the same answer twice", need: .library) {
            bench throws(Failure) in
            let prober = try Prober(bench)
            try require(harness_forbid_calls(bench.descriptor), "this kernel lets no process watch its own calls")
            for sample in samples(seed: 1, count: 16) + prober.images {
                let answers = try (0..<3).map { _ throws(Failure) in try prober.ask(sample) }
                try require(
                    answers.allSatisfy { $0 == answers[0] },
                    "probe() gave \(answers) for the same bytes (\(sample.name)): it is a function of its argument")
            }
        },
        Check(.probe, "fuzz", "probe() stays inside what it is given, whatever that is", need: .library) {
            bench throws(Failure) in
            let prober = try Prober(bench)
            for sample in samples(seed: 2, count: bench.subject.isQuick ? 100 : 2000) { _ = try prober.ask(sample) }
            for image in prober.images {
                var random = SplitMix64(seed: 3)
                for length in Array(0...600) + [1023, 4095, 4096, 65535] where length <= image.head.count {
                    _ = try prober.ask(image.cut(to: length))
                }
                for _ in 0..<(bench.subject.isQuick ? 100 : 2000) {
                    var changed = image
                    for _ in 0...random.less(4) where !changed.head.isEmpty {
                        // Headers are at the start of a file.
                        let place = random.less(min(changed.head.count, 512))
                        changed.head[place] = UInt8(truncatingIfNeeded: random.next())
                    }
                    changed.name = "changed image"
                    _ = try prober.ask(changed)
                }
            }
        },
        Check(.probe, "recognises", "probe() knows the given image, and nothing else", need: .library) {
            bench throws(Failure) in
            let prober = try Prober(bench)
            let zeroes = Sample(name: "zeroes", head: [UInt8](repeating: 0, count: 65536))
            try require(try prober.ask(zeroes).allSatisfy { $0 == 0 }, "probe() takes a disk of zeroes for an image")
            guard let image = prober.images.first, let format = bench.subject.format else { return }
            let score = try prober.ask(image, formats: [format])[0]
            try require(score > 0, "probe() gave 0 for the image that is of format \(format)")
        },
        Check(.probe, "inspect", "inspect() refuses or describes, whatever the file", need: .library) {
            bench throws(Failure) in
            let plugin = try bench.plugin
            guard unsafe plugin.table.inspect != nil else { throw .skip("there is no inspect()") }
            let values = try plugin.values(bench.subject.options)
            var files = samples(seed: 4, count: 64)
            if let image = bench.subject.image, let sample = Sample(ofFile: image) {
                files += [sample] + [0, 1, 17, 72, 104, 511, 512, 4096].map { sample.cut(to: $0) }
            }
            for sample in files {
                let path = "\(bench.subject.folder)/inspected"
                try write(sample.head, to: path)
                let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
                defer { close(file) }
                for format in plugin.library.formats {
                    bench.at("inspect() of \(sample.name) as \(format)")
                    var image = xbb_image()
                    var error = xbb_error()
                    let code = unsafe format.withCString {
                        unsafe harness_inspect(plugin.handle, file, values.values, $0, &image, &error)
                    }
                    if code != 0 {
                        let failure = error.refusal(of: "inspect()", code)
                        try require(failure.isRefusal, failure.description)
                    }
                    try require(image.ref_count <= 4, "inspect() counts \(image.ref_count) references, with room for 4")
                }
            }
        },
    ]
}

/// Bytes of a file that may be an image.
struct Sample {
    var name: String
    var head: [UInt8]
    var tail: [UInt8] = []
    var size: UInt64?

    init(name: String, head: [UInt8], size: UInt64? = nil) {
        self.name = name
        self.head = head
        tail = Array(head.suffix(4096))
        self.size = size
    }

    /// The first 64 KiB and the last 4 KiB of a file.
    init?(ofFile path: String) {
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
        guard file >= 0 else { return nil }
        defer { close(file) }
        let length = Int(max(lseek(file, 0, SEEK_END), 0))
        name = "the image"
        head = [UInt8](repeating: 0, count: min(length, 65536))
        tail = [UInt8](repeating: 0, count: min(length, 4096))
        size = UInt64(length)
        guard unsafe pread(file, &head, head.count, 0) == head.count,
            unsafe pread(file, &tail, tail.count, length - tail.count) == tail.count
        else { return nil }
    }

    func cut(to length: Int) -> Sample {
        Sample(name: "the first \(length) bytes of \(name)", head: Array(head.prefix(length)))
    }
}

/// Zeroes, ones, noise, and magic numbers with noise behind them, in many lengths.
private func samples(seed: UInt64, count: Int) -> [Sample] {
    var random = SplitMix64(seed: seed)
    let magics: [[UInt8]] = [
        [], [UInt8]("QFI".utf8) + [0xfb, 0, 0, 0, 2], [UInt8]("QFI".utf8) + [0xfb, 0, 0, 0, 1],
        [UInt8]("QFI".utf8) + [0xfb, 0, 0, 0, 3], [UInt8]("conectix".utf8), [UInt8]("vhdxfile".utf8),
        [UInt8]("KDMV".utf8), [UInt8]("<<< Oracle VM".utf8), [UInt8]("LUKS".utf8) + [0xba, 0xbe],
    ]
    var samples = [
        Sample(name: "an empty file", head: []),
        Sample(name: "zeroes", head: [UInt8](repeating: 0, count: 65536)),
        Sample(name: "ones", head: [UInt8](repeating: 0xff, count: 65536)),
    ]
    let sizes: [UInt64?] = [nil, nil, nil, 0, 1, .max, 1 << 63]
    for index in 0..<count {
        let length = [random.less(600), random.less(5000), 65536][index % 3]
        let magic = magics[random.less(magics.count)]
        let noise = (0..<max(length - magic.count, 0)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        samples.append(
            Sample(
                name: "noise \(index)", head: Array((magic + noise).prefix(length)),
                size: sizes[random.less(sizes.count)]))
    }
    return samples
}

/// Calls a plugin's probe() and checks each answer.
private struct Prober {
    let bench: Bench
    let plugin: Plugin
    let images: [Sample]

    init(_ bench: Bench) throws(Failure) {
        self.bench = bench
        plugin = try bench.plugin
        guard unsafe plugin.table.probe != nil else { throw .skip("there is no probe()") }
        images = bench.subject.image.flatMap { Sample(ofFile: $0) }.map { [$0] } ?? []
    }

    /// The score of each format.
    ///
    /// The plugin gets pointers to arrays and a string that outlive the call.
    func ask(_ sample: Sample, formats: [String]? = nil) throws(Failure) -> [Int32] {
        var scores: [Int32] = []
        for format in formats ?? plugin.library.formats {
            let score = unsafe format.withCString { format in
                unsafe harness_probe(
                    plugin.handle, sample.head, UInt64(sample.head.count), sample.tail, UInt64(sample.tail.count),
                    sample.size ?? UInt64(sample.head.count), format)
            }
            try require(
                (0...100).contains(score), "probe() gave \(score) for \(sample.name) as \(format): 0 to 100 is expected"
            )
            try require(
                format != "raw" || score == 0, "probe() answers for raw, which is never found out by its content")
            scores.append(score)
        }
        return scores
    }
}

/// A file with this text.
package func writeText(_ text: String, to path: String) throws(Failure) { try write([UInt8](text.utf8), to: path) }

/// A file with these bytes.
func write(_ bytes: [UInt8], to path: String) throws(Failure) {
    let file = unsafe clinux_open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw Failure("cannot write \(path): \(unsafe String(cString: strerror(errno)))") }
    defer { close(file) }
    if unsafe pwrite(file, bytes, bytes.count, 0) != bytes.count { throw Failure("cannot write \(path)") }
}
