// The run as the page carries it: columns of numbers, and texts by number. Names come from strangers: they are
// shown by textContent and fillText alone, with control characters and direction marks as codes.

const raw = JSON.parse(document.getElementById("data").textContent);
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/gu;
const texts = raw.texts.map(value => value.replace(HIDDEN, char =>
  "\\u" + char.codePointAt(0).toString(16).padStart(4, "0")));
const T = raw.tensors, S = raw.steps;
const numTensors = T.name.length, numSteps = S.op.length;
const text = at => at == null ? "" : texts[at];
const name = tensor => texts[T.name[tensor]];
const type = tensor => texts[T.dtype[tensor]] + texts[T.shape[tensor]];
const isBad = tensor => T.nans[tensor] > 0 || T.infinities[tensor] > 0;
const outputOf = new Map(raw.outputs.map(([key, tensor]) => [tensor, texts[key]]));
const quantised = new Map(T.quantised.map(row => [row[0], row]));
const histogramOf = new Map((raw.histograms ? raw.histograms.of : []).map((tensor, at) => [tensor, at]));
const mapsOf = new Map((raw.maps ? raw.maps.of : []).map((tensor, at) => [tensor, at]));
const readers = Array.from({length: numTensors}, () => []);
S.reads.forEach((reads, step) => new Set(reads).forEach(tensor => readers[tensor].push(step)));
const badStep = S.outs.map(outs => outs.some(isBad));

function bytesOf(base64) {
  const chars = atob(base64), bytes = new Uint8Array(chars.length);
  for (let at = 0; at < chars.length; at++) bytes[at] = chars.charCodeAt(at);
  return bytes;
}

// Decoded when first asked for: the page is drawn before that.
const lazily = make => { let made; return () => made ??= make(); };
const histogramShares = lazily(() => new Uint16Array(bytesOf(raw.histograms.data).buffer));
const mapPixels = lazily(() => bytesOf(raw.maps.data));
const mapBegins = lazily(() => {
  const begins = [];
  let at = 0;
  raw.maps.of.forEach((_, row) => {
    begins.push(at);
    at += raw.maps.shown[row] * raw.maps.h[row] * raw.maps.w[row];
  });
  return begins;
});

// --- numbers as text -----------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en-US");
function figure(value) {
  if (value == null) return "–";
  if (typeof value === "string") return value.replace("Infinity", "∞");
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return whole.format(value);
  if (size >= 1e5 || size < 1e-2) return value.toExponential(3);
  return String(Number(value.toPrecision(5)));
}
const count = value => value == null ? "–" : whole.format(value);
function bytes(value) {
  if (value == null) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (value >= size) return (value / size).toFixed(value >= 100 * size ? 0 : 1) + " " + unit;
  return value + " B";
}
function duration(microseconds) {
  if (microseconds >= 1e6) return (microseconds / 1e6).toFixed(2) + " s";
  return microseconds >= 1000 ? (microseconds / 1000).toFixed(2) + " ms" : Math.round(microseconds) + " µs";
}
const share = value => value == null ? "–" : (100 * value).toFixed(value && value < .001 ? 3 : 1) + " %";
