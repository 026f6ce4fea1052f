// The modules without a page (rates.js, prompts.js), checked in node; test_web.py runs it beside copies of them.
import assert from "node:assert/strict";
import { columnOf, linesOf, withoutRepeats } from "./prompts.mjs";
import { PRESETS, bytes, choose, duration, nearest, percent, stops } from "./rates.mjs";

assert.deepEqual(stops("trellis"), [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8]);
assert.deepEqual(stops("additive"), [1, 2, 3, 4]);
assert.deepEqual(stops("palette", true), stops("trellis"));
for (const { bits } of PRESETS) assert.ok(stops("trellis").includes(bits));
assert.equal(stops("trellis")[nearest(stops("trellis"), 7.4)], 8);
assert.equal(stops("palette")[nearest(stops("palette"), 2.4)], 2);
// There and back: 8 bits take the palette, and only then does leaving them bring the trellis back.
const there = choose(8, "trellis", false);
assert.deepEqual(there, { bits: 8, method: "palette", switched: true });
assert.deepEqual(choose(3.5, there.method, there.switched), { bits: 3.5, method: "trellis", switched: false });
assert.deepEqual(choose(4, "palette", false), { bits: 4, method: "palette", switched: false });
assert.deepEqual(["999", "1000", "1819748676"].map((n) => bytes(Number(n))), ["999 bytes", "1 kB", "1.82 GB"]);
assert.deepEqual([0.2, 60, 600, 7200].map(duration), ["about 1 s", "about 60 s", "about 10 min", "about 2.0 h"]);
assert.deepEqual([0.018, 0.00034, 0.27].map(percent), ["1.8 %", "0.034 %", "27 %"]);

assert.deepEqual(linesOf(" a \r\n\n b\rc "), ["a", "b", "c"]);
assert.deepEqual(withoutRepeats(["b", "a", "b"]), ["b", "a"]);
assert.deepEqual(columnOf("\uFEFFa\nb\n", "x.txt"), { prompts: ["a", "b"] });
assert.deepEqual(columnOf('id,Prompt\n1,"a, ""b""\nc"\n2,d', "x.csv"), { prompts: ['a, "b" c', "d"] });
assert.deepEqual(columnOf("prompt;n\nein Haus;1\n", "x.csv"), { prompts: ["ein Haus"] });
assert.deepEqual(columnOf("only\none\n", "x.csv"), { prompts: ["only", "one"] });
assert.deepEqual(columnOf("a\tcaption\n1\tx, y\n", "x.tsv"), { prompts: ["x, y"] });
assert.match(columnOf("a,b\n1,2\n", "x.csv").error, /no column/);
assert.deepEqual(columnOf("", "x.csv"), { prompts: [] });
