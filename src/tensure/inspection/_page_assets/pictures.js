// Histograms and maps of channels, drawn from the bytes that the page carries.

function sharesOf(tensor) {
  const at = histogramOf.get(tensor);
  if (at === undefined) return null;
  const bins = raw.histograms.bins;
  return Array.from(histogramShares().subarray(at * bins, (at + 1) * bins), value => (value / 65535) ** 2);
}

function histogramWords(tensor) {
  const shares = sharesOf(tensor);
  if (!shares) return "no histogram";
  const at = shares.indexOf(Math.max(...shares));
  const [lo, hi] = cut(tensor, at);
  return share(shares[at]) + " of the values lie from " + figure(lo) + " to " + figure(hi);
}
function cut(tensor, at) {
  const lo = Number(T.minimum[tensor]), hi = Number(T.maximum[tensor]), bins = raw.histograms.bins;
  return [lo + (hi - lo) * at / bins, lo + (hi - lo) * (at + 1) / bins];
}

// Heights are square roots, so that rare values are seen beside common ones.
function drawSpark(canvas, tensor, width) {
  const context = surface(canvas, width, 19);
  if (!context) return;
  const shares = sharesOf(tensor);
  if (!shares) {
    context.fillStyle = colours.line;
    context.fillRect(0, 17, width, 1);
    return;
  }
  const most = Math.sqrt(Math.max(...shares)), wide = width / shares.length;
  context.fillStyle = isBad(tensor) ? colours.bad : colours.fill;
  shares.forEach((value, at) => {
    const height = Math.max(value ? 1 : 0, Math.sqrt(value) / most * 18);
    context.fillRect(at * wide, 19 - height, Math.max(1, wide - .5), height);
  });
}

function drawHistogram(canvas, tensor, pointed = -1) {
  const context = surface(canvas);
  const shares = sharesOf(tensor);
  if (!context || !shares) return;
  const width = canvas.clientWidth, base = canvas.clientHeight - 18;
  const most = Math.sqrt(Math.max(...shares)), wide = width / shares.length;
  const lo = Number(T.minimum[tensor]), hi = Number(T.maximum[tensor]);
  shares.forEach((value, at) => {
    context.fillStyle = at === pointed ? colours.accent : colours.fill;
    const height = Math.max(value ? 1 : 0, Math.sqrt(value) / most * (base - 4));
    context.fillRect(at * wide, base - height, wide - 1, height);
  });
  context.fillStyle = colours.line;
  context.fillRect(0, base, width, 1);
  context.font = "11px " + FONT;
  context.fillStyle = colours.soft;
  context.textAlign = "left";
  context.fillText(figure(lo), 0, base + 14);
  context.textAlign = "right";
  context.fillText(figure(hi), width, base + 14);
  const zero = -lo / (hi - lo) * width;
  if (lo < 0 && hi > 0) {
    context.fillRect(zero - .5, 0, 1, base);
    if (zero > 60 && zero < width - 60) {
      context.textAlign = "center";
      context.fillText("0", zero, base + 14);
    }
  }
}

// --- maps ------------------------------------------------------------------------------------------

const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
function ramp(stops) {
  const parts = stops.map(stop => [1, 3, 5].map(at => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({length: 255}, (_, level) => {
    const at = level / 254 * (parts.length - 1), low = Math.min(parts.length - 2, Math.floor(at));
    return parts[low].map((value, channel) => Math.round(value + (parts[low + 1][channel] - value) * (at - low)));
  });
}
const wide = hex => hex.length === 4 ? "#" + [...hex.slice(1)].map(char => char + char).join("") : hex;

function drawMaps(canvas, tensor) {
  const row = mapsOf.get(tensor), maps = raw.maps;
  const [shown, h, w] = [maps.shown[row], maps.h[row], maps.w[row]];
  const across = shown === 1 ? 1 : Math.min(shown, 4), down = Math.ceil(shown / across), gap = shown === 1 ? 0 : 1;
  const pixels = mapPixels(), begin = mapBegins()[row];
  const signed = Number(maps.lo[row]) < 0 && Number(maps.hi[row]) > 0;
  const palette = ramp(signed ? [colours.neg, colours.mid, colours.pos].map(wide) : VIRIDIS);
  canvas.width = across * (w + gap) - gap;
  canvas.height = down * (h + gap) - gap;
  canvas.style.aspectRatio = canvas.width + " / " + canvas.height;
  const context = canvas.getContext("2d");
  for (let channel = 0; channel < shown; channel++) {
    const image = context.createImageData(w, h);
    for (let at = 0; at < h * w; at++) {
      const level = pixels[begin + channel * h * w + at];
      const [red, green, blue] = level === 255 ? [255, 0, 255] : palette[level];
      image.data.set([red, green, blue, 255], at * 4);
    }
    context.putImageData(image, channel % across * (w + gap), Math.floor(channel / across) * (h + gap));
  }
}

function mapWords(tensor) {
  const row = mapsOf.get(tensor), maps = raw.maps;
  const all = maps.channels[row], shown = maps.shown[row];
  const what = all === 1 ? "The values as an image" : shown < all ? "The first " + shown + " of " + all + " channels"
    : "All " + all + " channels";
  const lo = Number(maps.lo[row]), hi = Number(maps.hi[row]);
  const scale = lo < 0 && hi > 0 ? "blue " + figure(maps.lo[row]) + ", red " + figure(maps.hi[row])
    : "dark " + figure(maps.lo[row]) + ", bright " + figure(maps.hi[row]);
  const size = maps.h[row] + " × " + maps.w[row];
  return what + ", " + size + " each; " + scale + "; NaN and Inf magenta";
}
