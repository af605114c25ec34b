#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tests of what the benches select, count and draw; nothing is measured."""
import importlib.util, os, re, sys, tempfile, unittest
import xml.etree.ElementTree as ElementTree

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../lab/bench")]
import bench_picture, rows, table

SVG = "{http://www.w3.org/2000/svg}"
OUTPUT = """12.5: writing the storage
CLOCK single 16
RESULT 1 file randread 4k 32 xbb 1 900 1000 16000000
RESULT 1 file randread 4k 32 blkback 1 1000 1000 8000000
RESULT 1 file randread 4k 32 xbb 2 1200 1000 16000000
RESULT 1 file randread 4k 32 blkback 2 1000 1000 8000000
RESULT 1 file randread 4k 32 xbb 3 1100 1000 16000000
RESULT 1 file randread 4k 32 blkback 3 1000 1000 8000000
CLOCK real 16
RESULT 4 qcow2 read 256k 8 xbb 1 300 600 3000000
RESULT 4 qcow2 read 256k 8 qdisk 1 100 200 6000000
"""


def results():
    return {"rows": [table.entry(*item) for item in table.parse(OUTPUT.splitlines()).items()]}


class Rows(unittest.TestCase):
    def test_all_are_rows_of_the_issue(self):
        names = rows.select("all")
        self.assertEqual(len(names), len(set(names)))
        for wanted in ("file:randread:4k:1:1", "file:randwrite:4k:32:4", "device:read:64k:8:1", "qcow2:write:256k:8:4",
                       "overlay:randwrite:4k:32:1", "device:write:1M:8:1", "file:mixed:4k:32:1"):
            self.assertIn(wanted, names)

    def test_an_expression_selects(self):
        self.assertEqual(rows.select("^qcow2:read:.*:1$"), ["qcow2:read:64k:8:1", "qcow2:read:256k:8:1", "qcow2:read:1M:8:1"])
        self.assertTrue(all(name.endswith(":1") for name in rows.select("")))
        self.assertLess(len(rows.select("")), len(rows.select("all")))

    def test_what_selects_nothing_is_refused(self):
        for wrong in ("3k", "("):
            with self.assertRaises(ValueError):
                rows.select(wrong)

    def test_each_row_has_backends(self):
        self.assertEqual(rows.line("file:randread:4k:1:4"), "4 file randread 4k 1 blkback blkback-direct qdisk xbb xbb-mapped")
        self.assertEqual(rows.line("overlay:write:1M:8:1"), "1 overlay write 1M 8 qdisk xbb")

    def test_backends_are_chosen(self):
        self.assertEqual(rows.line("device:read:64k:8:1", rows.chosen("xbb-mapped blkback")), "1 device read 64k 8 blkback xbb-mapped")
        self.assertEqual(rows.line("overlay:read:64k:8:1", rows.chosen("blkback")), "")
        self.assertEqual(rows.line("file:read:64k:8:1", rows.chosen(None)), rows.line("file:read:64k:8:1"))
        with self.assertRaises(ValueError):
            rows.chosen("xbb tapdisk")


class Table(unittest.TestCase):
    def test_ratios_are_of_rounds(self):
        first = results()["rows"][0]
        self.assertEqual(first["ratios"], {"blkback": {"median": 1.1, "min": 0.9, "max": 1.2}})
        self.assertEqual(first["backends"]["xbb"]["iops"], 1100)

    def test_costs_are_of_an_operation(self):
        first, second = results()["rows"]
        self.assertEqual(first["backends"]["xbb"]["instructions"], 1000)
        self.assertEqual(first["backends"]["blkback"]["instructions"], 500)
        self.assertEqual(second["backends"]["qdisk"]["ns_of_dom0"], 30000)

    def test_a_run_that_ended_early_has_a_table(self):
        early = [line for line in OUTPUT.splitlines() if "qdisk" not in line] + ["RESULT 4 qcow2 read 256k 8 qdisk 2 100 200 6000000", "RESULT 4"]
        row = [table.entry(*item) for item in table.parse(early).items()][1]
        self.assertEqual(row["ratios"], {})
        self.assertIn("| 300 |", table.table("real", [row]))

    def test_each_way_of_xbb_is_a_row_beside_the_same_peers(self):
        lines = OUTPUT.splitlines() + ["CLOCK real 16", "RESULT 4 qcow2 read 256k 8 xbb-mapped 1 500 600 3000000"]
        figures = table.parse(lines)
        both = [table.entry(key, figures_of, grants) for key, backends in figures.items() for grants, figures_of in table.variants(backends)][1:]
        self.assertEqual([(row["grants"], row["ratios"]["qdisk"]["median"]) for row in both], [("copied", 3), ("mapped", 5)])
        self.assertEqual([table.label(row).endswith("pages stay mapped") for row in both], [False, True])
        self.assertNotIn("xbb-mapped", both[0]["backends"])

    def test_a_table_has_all_rows_of_its_clock(self):
        text = table.table("single", results()["rows"][:1])
        self.assertIn("| File, 4k randread, depth 32 | 1100 | 1000 | 1.10 (0.90..1.20) |", text)
        self.assertEqual(len({line.count("|") for line in text.splitlines()[2:]}), 1)


class Picture(unittest.TestCase):
    def draw(self, *points):
        return bench_picture.draw("A & B", "<note>", [("group", [("row <1>", list(points))])])

    def test_it_is_well_formed_whatever_names_have(self):
        root = ElementTree.fromstring(self.draw(("x & y", 1.2, 1.0, 1.4)))
        texts = [text.text for text in root.iter(SVG + "text")]
        self.assertIn("row <1>", texts)
        self.assertIn("x & y", texts)

    def test_dot_and_whisker_are_where_the_scale_has_them(self):
        root = ElementTree.fromstring(self.draw(("a", 1.2, 0.8, 2.5)))
        scale = bench_picture.Scale([0.8, 1.2, 2.5])
        whisker = next(line for line in root.iter(SVG + "line") if line.get("class") == "s0")
        self.assertEqual([float(whisker.get(end)) for end in ("x1", "x2")], [scale(0.8), scale(2.5)])
        dot = [circle for circle in root.iter(SVG + "circle")][-1]
        self.assertEqual(float(dot.get("cx")), scale(1.2))
        self.assertLess(scale(0.8), scale(1))
        # Twice and half are as far from the peer.
        wide = bench_picture.Scale([0.5, 2])
        self.assertAlmostEqual(wide(2) - wide(1), wide(1) - wide(0.5), delta=0.2)

    def test_the_peer_has_its_line(self):
        for values in ((1.2, 1.1, 1.3), (0.5, 0.4, 0.6), (1, 1, 1), (300, 200, 400), (0.01, 0.001, 0.02)):
            root = ElementTree.fromstring(self.draw(("a", *values)))
            peer = [line for line in root.iter(SVG + "line") if line.get("class") == "peer"]
            self.assertEqual(len(peer), 1)
            for line in root.iter(SVG + "line"):
                for end in ("x1", "x2"):
                    self.assertTrue(bench_picture.LEFT <= float(line.get(end)) <= bench_picture.WIDTH)

    def test_series_have_colours_in_both_schemes_and_forms(self):
        picture = self.draw(*[(name, 1, 1, 1) for name in "abcd"])
        light, dark = picture.split("@media (prefers-color-scheme: dark)")
        for series in range(4):
            self.assertRegex(light, rf"\.s{series} {{ stroke")
            self.assertRegex(dark, rf"\.s{series} {{ stroke")
        self.assertEqual(len(re.findall("<circle|<rect|<path", picture)), 8)

    def test_nothing_and_nonsense_are_refused(self):
        for points in ([], [("a", 0, 0, 0)], [("a", 2, 1, 1.5)], [(name, 1, 1, 1) for name in "abcde"]):
            with self.assertRaises(ValueError):
                self.draw(*points)

    def test_all_benches_are_drawn(self):
        picture = bench_picture.xen_picture(results(), "single", 1)
        self.assertIn("XBB / xen-blkback: 1.10 (0.90 to 1.20)", picture)
        self.assertIn("median and extremes of 3 rounds<", picture)
        self.assertEqual([bench_picture.said_rounds(numbers) for numbers in ([1], [2, 5], [])], ["1 round", "2 to 5 rounds", "0 rounds"])
        with tempfile.TemporaryDirectory() as folder:
            drawn = bench_picture.all_xen_pictures(results(), folder)
            self.assertEqual([os.path.basename(name) for name in drawn], ["xen-bench-single-1.svg", "xen-bench-real-4.svg"])
            self.assertEqual(open(drawn[0]).read(), picture)
        self.assertIn("a guest with 4 processors", bench_picture.xen_picture(results(), "real", 4))
        with self.assertRaises(ValueError):
            bench_picture.xen_picture(results(), "real", 1)
        picture = bench_picture.qcow_picture({"state": "awake", "peers": [
            {"row": "4k random read, depth 32", "rounds": 3, "ratio": [0.7, 0.6, 0.8], "cost_ratio": [0.5, 0.4, 0.55]},
            {"row": "1M sequential write in place, depth 8", "rounds": 3, "ratio": [1.5, 1.4, 1.6], "cost_ratio": None}]})
        for text in ("awake machine", "IOPS: XBB / qemu-nbd: 0.70 (0.60 to 0.80)", "less is better: 0.50 (0.40 to 0.55)", "1.50 (1.40 to 1.60)"):
            self.assertIn(text, picture)
        picture = bench_picture.loopback_picture({"repeat": 5, "rows": [
            {"row": "File, 4k randread, depth 1, idle", "state": "idle", "peer": "fio libaio", "ratio_spread": [0.2, 0.3, 0.4]},
            {"row": "File, 4k randread, depth 1, awake", "state": "awake", "peer": "fio libaio", "ratio_spread": [0.7, 0.8, 0.9]}]})
        for text in ("idle machine: 0.30 (0.20 to 0.40)", "awake machine: 0.80 (0.70 to 0.90)", "5 rounds"):
            self.assertIn(text, picture)
        self.assertEqual(picture.count('<text x="24"'), 1)


if __name__ == "__main__":
    unittest.main()
