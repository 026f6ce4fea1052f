// The rates a person can choose, the presets, and numbers as people read them. No document, no server.

// Stops of the slider. The trellis has no rate of 8 bits: there the palette stands in for it, as in Plan (VQ).
const STOPS = {
  trellis: [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8],
  additive: [1, 2, 3, 4],
  product: [1, 2, 3, 4],
  palette: [1, 2, 3, 4, 5, 6, 8],
  uniform: [1, 2, 3, 4, 5, 6, 8],
};
const BEYOND = { method: "palette", bits: 8 };

// Names for four places on the rate curve of docs/quality.md (testbed, data-free): 2 bits visibly change pictures,
// 3 keep them close, at 4 the prediction SNR is that of Q4_K, and 6 are for whom size matters least.
export const PRESETS = [
  { name: "Tiny", bits: 2, encoders: "4", what: "smallest; pictures change visibly" },
  { name: "Small", bits: 3, encoders: "6", what: "the node's default" },
  { name: "Balanced", bits: 4, encoders: "6", what: "closer, a third larger" },
  { name: "Faithful", bits: 6, encoders: "8", what: "closest, twice as large as Small" },
];

/** Bits the slider offers. switched: the palette is only there because 8 bits were chosen. */
export const stops = (method, switched = false) => (switched ? STOPS.trellis : STOPS[method] ?? STOPS.trellis);

/** The stop next to a value that something else wrote. */
export function nearest(list, bits) {
  const distance = (index) => Math.abs(list[index] - bits);
  return list.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
}

/** Bits chosen on the slider -> {bits, method, switched}: what the node's inputs become. */
export function choose(bits, method, switched) {
  if (method === "trellis" && bits === BEYOND.bits) return { ...BEYOND, switched: true };
  if (switched && bits !== BEYOND.bits) return { bits, method: "trellis", switched: false };
  return { bits, method, switched };
}

/** `1.82 GB`, decimal units as the pack's reports print them. */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  let place = 0;
  for (; count >= 1000 && place < 3; place += 1) count /= 1000;
  return `${count.toFixed([0, 0, 1, 2][place])} ${units[place]}`;
}

/** `about 24 min` */
export function duration(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** `1.8 %`: squared error over squared norm, two digits. */
export const percent = (error) => `${Number((100 * error).toPrecision(2))} %`;
