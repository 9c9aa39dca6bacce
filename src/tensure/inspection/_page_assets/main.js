// One tensor is chosen; every part of the page shows it.

const app = {
  chosen: null,
  choose(tensor, from) {
    if (tensor === app.chosen) { app.parts.table.show(tensor); return; }
    app.chosen = tensor;
    app.parts.graph.show(tensor);
    app.parts.table.show(tensor);
    app.parts.timeline.draw();
    app.parts.detail.show(tensor);
    const step = T.step[tensor];
    byId("live").textContent = (step >= 0 ? "step " + step + ", " + text(S.op[step]) + ", " : "") + name(tensor);
    // A place in the page of its own: the address can be kept and sent.
    try { history.replaceState(null, "", step >= 0 ? "#step-" + step : "#"); } catch { /* not allowed here */ }
  },
  chooseStep(step, from) {
    if (step >= 0 && step < numSteps && S.outs[step].length) app.choose(S.outs[step][0], from);
  },
  walk(by) {  // over steps that made no tensor
    let step = app.chosen == null ? (by > 0 ? -1 : numSteps) : T.step[app.chosen];
    const target = Math.min(numSteps - 1, Math.max(0, step + by));
    for (step = target; step >= 0 && step < numSteps && !S.outs[step].length; step += Math.sign(by));
    app.chooseStep(step);
  },
  reveal(tensor) { app.parts.graph.reveal(tensor); },
  parts: {},
};

readColours();
app.parts.detail = makeDetail(byId("detail"), app);
app.parts.timeline = makeTimeline(byId("timeline"), byId("timeline-tip"), app);
app.parts.table = makeTable(byId("grid"), app);
app.parts.graph = makeGraph(byId("graph-canvas"), app);

function drawAll() {
  app.parts.timeline.draw();
  app.parts.graph.draw();
  app.parts.table.render();
  app.parts.detail.draw();
}
function followAddress() {
  const found = /^#step-(\d{1,9})$/.exec(location.hash);
  if (found) app.chooseStep(Number(found[1]));
  return !!found;
}
addEventListener("hashchange", followAddress);
new ResizeObserver(drawAll).observe(byId("work"));
addEventListener("resize", drawAll);
darkness.addEventListener("change", () => { readColours(); app.parts.table.redraw(); drawAll(); });
document.addEventListener("keydown", event => {
  const typing = event.target.closest && event.target.closest("input[type=search]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { byId("filter").focus(); event.preventDefault(); }
});

app.parts.timeline.paint();
app.parts.table.paint();
app.parts.graph.paint();
if (!followAddress()) app.chooseStep(Math.max(0, badStep.indexOf(true)));
// Two frames later everything is on the screen: when that was, for whoever measures.
requestAnimationFrame(() => requestAnimationFrame(() => {
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}));
