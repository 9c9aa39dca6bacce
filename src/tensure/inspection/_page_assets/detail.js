// Everything that is known of the chosen tensor and of the step that made it.

function makeDetail(panel, app) {
  let canvases = {};

  function show(tensor) {
    canvases = {};
    const step = stepOf(tensor);
    const parts = [walkBar(step), heading(tensor, step)];
    if (mapsOf.has(tensor)) parts.push(title("Feature maps"), mapsFigure(tensor));
    if (histogramOf.has(tensor)) parts.push(title("Histogram"), histogramFigure(tensor));
    parts.push(title("Values"), valueFacts(tensor), title("Memory"), memoryFacts(tensor, step));
    if (quantised.has(tensor)) parts.push(title("Quantisation"), quantisedFacts(tensor));
    if (step >= 0) parts.push(...stepParts(step));
    if (readers[tensor].length) parts.push(title("Read by"), links(readers[tensor].slice(0, 40).map(reader =>
      [S.outs[reader][0], text(S.op[reader]), "step " + reader]), readers[tensor].length));
    if (T.digest[tensor]) parts.push(title("Digest"), make("p", {class: "mono where"}, T.digest[tensor]));
    for (const said of raw.without) parts.push(make("p", {class: "note"}, said));
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
    draw();
  }
  function draw() {
    if (canvases.maps) drawMaps(canvases.maps, canvases.tensor);
    if (canvases.histogram) drawHistogram(canvases.histogram, canvases.tensor);
  }

  const title = said => make("h4", {}, said);
  function facts(pairs) {
    const list = make("dl");
    for (const [what, said, mark] of pairs)
      if (said !== "" && said != null) list.append(make("dt", {}, what), make("dd", {class: mark || null}, said));
    return list;
  }
  function walkBar(step) {
    const bad = badStep.indexOf(true, step + 1);
    const button = (label, action, off) => {
      const made = make("button", {onclick: action}, label);
      made.disabled = off;
      return made;
    };
    return make("div", {class: "walk"},
      button("‹ Back", () => app.walk(-1), step <= 0),
      button("Next ›", () => app.walk(1), step >= numSteps - 1),
      button("Next NaN / Inf", () => app.chooseStep(bad), bad < 0),
      button("In graph", () => app.reveal(app.chosen), false));
  }
  function heading(tensor, step) {
    const box = make("div", {}, make("h3", {}, name(tensor)), make("p", {class: "where mono"}, type(tensor)));
    const where = step < 0 ? text(T.origin[tensor]) + ", there before the first step"
      : "step " + step + ", " + text(S.op[step]) + (S.backward[step] ? ", backward" : "");
    box.append(make("p", {class: "where"}, where));
    if (step >= 0 && text(S.module[step])) box.append(make("p", {class: "where"}, text(S.module[step])));
    if (step >= 0 && text(S.source[step])) box.append(make("p", {class: "where mono"}, text(S.source[step])));
    const badge = (said, bad) => box.append(make("span", {class: bad ? "badge bad" : "badge"}, said));
    if (isBad(tensor)) badge("NaN / Inf first at " + text(T.first_at[tensor]), true);
    if (T.in_place[tensor]) badge("written in place");
    if (T.alias_of[tensor] != null) badge("shares memory");
    if (outputOf.has(tensor)) badge("output " + outputOf.get(tensor));
    return box;
  }
  function mapsFigure(tensor) {
    const canvas = make("canvas", {class: "maps", role: "img", "aria-label": mapWords(tensor)});
    canvases.maps = canvas;
    canvases.tensor = tensor;
    return make("figure", {}, canvas, make("figcaption", {}, mapWords(tensor)));
  }
  function histogramFigure(tensor) {
    const canvas = make("canvas", {role: "img", "aria-label": "Histogram: " + histogramWords(tensor)});
    canvas.style.height = "96px";
    canvases.histogram = canvas;
    canvases.tensor = tensor;
    const usual = "Square-root scale. " + histogramWords(tensor);
    const caption = make("figcaption", {}, usual);
    canvas.addEventListener("pointermove", event => {
      const at = Math.floor(event.offsetX / canvas.clientWidth * raw.histograms.bins);
      if (at < 0 || at >= raw.histograms.bins) return;
      const [lo, hi] = cut(tensor, at);
      caption.textContent = share(sharesOf(tensor)[at]) + " from " + figure(lo) + " to " + figure(hi);
      drawHistogram(canvas, tensor, at);
    });
    canvas.addEventListener("pointerleave", () => { caption.textContent = usual; drawHistogram(canvas, tensor); });
    return make("figure", {}, canvas, caption);
  }
  function valueFacts(tensor) {
    if (T.zeros[tensor] == null) return make("p", {class: "where"}, "Not looked at");
    const of = (value, bad) => [count(value) + (value ? " (" + share(value / T.size[tensor]) + ")" : ""), value && bad ? "bad" : ""];
    return facts([
      ["min", figure(T.minimum[tensor])], ["max", figure(T.maximum[tensor])], ["mean", figure(T.mean[tensor])],
      ["std", figure(T.std[tensor])], ["L2", figure(T.l2[tensor])], ["zeros", ...of(T.zeros[tensor])],
      ["denormals", ...of(T.denormals[tensor])], ["NaN", ...of(T.nans[tensor], true)],
      ["Inf", ...of(T.infinities[tensor], true)], ["first NaN / Inf", text(T.first_at[tensor]), "bad"],
      ["over limit", T.over_limit[tensor] ? count(T.over_limit[tensor]) : ""],
    ]);
  }
  function memoryFacts(tensor, step) {
    const alias = T.alias_of[tensor];
    return facts([
      ["elements", count(T.size[tensor])], ["bytes", count(T.nbytes[tensor]) + " (" + bytes(T.nbytes[tensor]) + ")"],
      ["rank", String(T.rank[tensor])], ["strides", text(T.strides[tensor])], ["contiguity", text(T.memory[tensor])],
      ["storage", T.storage[tensor] + (T.offset[tensor] ? ", from element " + count(T.offset[tensor]) : "")],
      ["alias of", alias == null ? "" : name(alias)], ["device", text(T.device[tensor])],
      ["layout", text(T.layout[tensor])], ["live memory", step < 0 ? "" : bytes(S.live_bytes[step])],
    ]);
  }
  function quantisedFacts(tensor) {
    const row = quantised.get(tensor);
    return facts([["scale", scales(row)], ["zero point", zeros(row)],
      ["along axis", row[5] == null ? "" : String(row[5])], ["saturated", share(row[6])]]);
  }
  function stepParts(step) {
    const parts = [];
    if (S.arguments[step].length) parts.push(title("Arguments"),
      facts(S.arguments[step].map(([key, value]) => [texts[key], texts[value]])));
    if (S.reads[step].length) parts.push(title("Reads"), links(S.reads[step].map(tensor =>
      [tensor, name(tensor), type(tensor)]), S.reads[step].length));
    if (S.outs[step].length > 1) parts.push(title("Makes"), links(S.outs[step].map(tensor =>
      [tensor, name(tensor), type(tensor)]), S.outs[step].length));
    if (S.wrote[step].length) parts.push(title("Writes over"), links(S.wrote[step].map(tensor =>
      [tensor, name(tensor), type(tensor)]), S.wrote[step].length));
    parts.push(title("Time"), facts([["the op took", duration(S.microseconds[step])]]));
    return parts;
  }
  function links(items, all) {
    const list = make("ul", {class: "links"});
    for (const [tensor, label, note] of items) list.append(make("li", {}, tensor === undefined ? label
      : make("button", {onclick: () => app.choose(tensor)}, label), make("span", {}, note)));
    if (all > items.length) list.append(make("li", {}, (all - items.length) + " more"));
    return list;
  }
  panel.replaceChildren(make("p", {class: "where"}, "Choose a tensor in the graph, the table or the memory."));
  return {show, draw};
}
