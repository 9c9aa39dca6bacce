// The data flow on a canvas: what is in sight is drawn, what is far away without text.

function makeGraph(canvas, app) {
  const root = buildTree();
  let plan = null, boxes = [], view = {x: 0, y: 0, k: 1}, hover = null, fitted = false;
  const draw = oncePerFrame(paint);

  function relayout() {
    plan = layoutTree(root);
    boxes = [];
    const walk = group => { for (const child of group.children)
      if (child.kind === "group" && child.open) { boxes.push(child); walk(child); } };
    walk(root);
    for (const wire of plan.wires) {
      const ys = wire.points.map(point => point[1]), xs = wire.points.map(point => point[0]);
      wire.box = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    }
    draw();
  }

  // --- where things are ---------------------------------------------------------------------------

  let sight = [0, 0, 0, 0];
  const look = () => sight = [-view.x / view.k, -view.y / view.k,
    (canvas.clientWidth - view.x) / view.k, (canvas.clientHeight - view.y) / view.k];
  const inSight = (x, y, w, h) => x < sight[2] && x + w > sight[0] && y < sight[3] && y + h > sight[1];
  function at(event) {
    const rect = canvas.getBoundingClientRect();
    const x = (event.clientX - rect.left - view.x) / view.k, y = (event.clientY - rect.top - view.y) / view.k;
    const holds = node => x >= node.x && x <= node.x + node.w && y >= node.y && y <= node.y + node.h;
    const node = plan.shown.find(holds);
    if (node) return node;
    return boxes.find(box => holds(box) && y <= box.y + 26) || null;
  }
  const nodeOf = tensor => T.step[tensor] >= 0 ? plan.steps[T.step[tensor]] : plan.leaves.get(tensor);

  function start() {  // the top, as wide as it goes at a size that can be read
    view.k = Math.min(1, Math.max(.55, canvas.clientWidth / (root.w + 8)));
    const first = plan.shown[0];
    view.x = root.w * view.k <= canvas.clientWidth || !first ? (canvas.clientWidth - root.w * view.k) / 2
      : canvas.clientWidth / 2 - (first.x + first.w / 2) * view.k;
    view.y = -8 * view.k;
    draw();
  }
  function fit() {
    view.k = Math.min(1, canvas.clientWidth / (root.w + 16), canvas.clientHeight / (root.h + 16));
    view.x = (canvas.clientWidth - root.w * view.k) / 2;
    view.y = (canvas.clientHeight - root.h * view.k) / 2;
    draw();
  }
  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const k = Math.min(2.5, Math.max(.01, view.k * factor));
    view.x = x - (x - view.x) * k / view.k;
    view.y = y - (y - view.y) * k / view.k;
    view.k = k;
    keepIn();
    draw();
  }
  function keepIn() {  // the middle of the canvas stays on the graph
    const x = canvas.clientWidth / 2, y = canvas.clientHeight / 2;
    view.x = Math.min(x, Math.max(x - root.w * view.k, view.x));
    view.y = Math.min(y, Math.max(y - root.h * view.k, view.y));
  }
  function show(tensor) {
    const node = nodeOf(tensor);
    if (!node || !canvas.clientWidth) { draw(); return; }
    const margin = 40, k = view.k;
    const left = node.x * k + view.x, top = node.y * k + view.y;
    if (left < margin / 2 || left + node.w * k > canvas.clientWidth - margin / 2)
      view.x = canvas.clientWidth / 2 - (node.x + node.w / 2) * k;
    if (top < margin || top + node.h * k > canvas.clientHeight - margin)
      view.y = canvas.clientHeight / 2 - (node.y + node.h / 2) * k;
    draw();
  }
  function reveal(tensor) {  // open every module around it
    const node = nodeOf(tensor);
    if (!node) return;
    if (node.kind === "group") {
      let group = node;
      while (group && group.kind === "group") {
        group.open = true;
        group = group.children.find(child => child.first <= T.step[tensor] && T.step[tensor] <= child.last);
      }
      relayout();
    }
    view.k = Math.max(view.k, .8);
    show(tensor);
  }
  function toggle(node) {
    const before = [node.x, node.y];
    node.open = !node.open;
    relayout();
    // What was clicked stays under the pointer.
    view.x += (before[0] - node.x) * view.k;
    view.y += (before[1] - node.y) * view.k;
    keepIn();
    draw();
  }
  function openAll(open) {
    eachGroup(root, group => group.open = open);
    relayout();
    if (app.chosen != null) show(app.chosen); else start();
  }

  // --- drawing ------------------------------------------------------------------------------------

  function paint() {
    const context = surface(canvas);
    if (!context || !plan) return;
    if (!fitted) { fitted = true; start(); }
    look();
    context.translate(view.x, view.y);
    context.scale(view.k, view.k);
    const words = view.k > .38;
    for (const box of boxes) if (inSight(box.x, box.y, box.w, box.h)) paintBox(context, box, words);
    const chosen = app.chosen == null ? null : nodeOf(app.chosen);
    context.lineWidth = 1.4 / Math.min(1, Math.max(view.k, .4));
    context.strokeStyle = colours.wire;
    context.beginPath();
    const bright = [];
    for (const wire of plan.wires) {
      const [x0, y0, x1, y1] = wire.box;
      if (!inSight(x0 - 20, y0, x1 - x0 + 40, y1 - y0)) continue;
      if (chosen && (wire.from === chosen || wire.to === chosen)) bright.push(wire);
      else trace(context, wire.points);
    }
    context.stroke();
    if (view.k > .3) for (const wire of plan.wires)
      if (inSight(wire.to.x, wire.to.y - 10, wire.to.w, 12)) arrow(context, wire, colours.wire);
    context.strokeStyle = colours.accent;
    context.lineWidth *= 1.7;
    context.beginPath();
    for (const wire of bright) trace(context, wire.points);
    context.stroke();
    for (const wire of bright) arrow(context, wire, colours.accent);
    for (const node of plan.shown)
      if (inSight(node.x, node.y, node.w, node.h)) paintNode(context, node, node === chosen, words);
  }

  function trace(context, points) {
    context.moveTo(points[0][0], points[0][1]);
    for (let at = 1; at < points.length; at++) {
      const [x0, y0] = points[at - 1], [x1, y1] = points[at];
      if (Math.abs(x0 - x1) < .5) { context.lineTo(x1, y1); continue; }
      const bend = Math.min((y1 - y0) / 2, 40);
      // Long slanted wires fall straight first, so that they do not cross boxes.
      context.bezierCurveTo(x0, y0 + bend, x1, Math.min(y1, y0 + 2 * bend) - bend, x1, Math.min(y1, y0 + 2 * bend));
      context.lineTo(x1, y1);
    }
  }
  function arrow(context, wire, colour) {
    const [x, y] = wire.points[wire.points.length - 1];
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(x, y + .5);
    context.lineTo(x - 4, y - 6.5);
    context.lineTo(x + 4, y - 6.5);
    context.fill();
  }
  function paintBox(context, box, words) {
    context.beginPath();
    context.roundRect(box.x, box.y, box.w, box.h, 10);
    context.fillStyle = colours.group;
    context.fill();
    context.strokeStyle = hover === box ? colours.accent : colours.line;
    context.lineWidth = 1;
    context.stroke();
    if (!words) return;
    context.fillStyle = colours.soft;
    context.font = "600 11.5px " + FONT;
    context.textAlign = "left";
    context.fillText("▾ " + fitText(context, box.label, box.w - 36), box.x + 10, box.y + 18);
  }
  function paintNode(context, node, chosen, words) {
    const group = node.kind === "group", leaf = node.kind === "leaf";
    const colour = leaf ? colours.leaf : group ? colours.card : colours[kindOf(text(S.op[node.step]))];
    if (group && view.k > .2) {  // a closed module is a stack of cards
      context.beginPath();
      context.roundRect(node.x + 4, node.y + 4, node.w, node.h, 8);
      context.fillStyle = colours.line;
      context.fill();
    }
    context.beginPath();
    context.roundRect(node.x, node.y, node.w, node.h, leaf ? 14 : 8);
    context.fillStyle = colour;
    context.fill();
    const gives = node.kind === "step" && S.outs[node.step].some(tensor => outputOf.has(tensor));
    context.lineWidth = chosen ? 2.6 : node.bad || gives ? 2 : 1;
    context.strokeStyle = chosen ? colours.accent : node.bad ? colours.bad : gives ? colours.good
      : hover === node ? colours.accent : colours.line;
    context.stroke();
    if (!words) return;
    context.textAlign = "center";
    const x = node.x + node.w / 2, room = node.w - 18;
    context.fillStyle = colours.ink;
    context.font = "600 12.5px " + FONT;
    if (leaf) { context.fillText(fitText(context, name(node.tensor), room), x, node.y + 18.5); return; }
    const label = group ? "▸ " + node.label : text(S.op[node.step]);
    context.fillText(fitText(context, label, room), x, node.y + 18);
    context.fillStyle = node.bad ? colours.bad : colours.soft;
    context.font = "11px " + FONT;
    context.fillText(fitText(context, below(node), room), x, node.y + 33);
  }
  function below(node) {
    const bad = node.bad ? "NaN / Inf · " : "";
    if (node.kind === "group") return bad + whole.format(node.size) + " steps";
    const outs = S.outs[node.step];
    return bad + (outs.length ? type(outs[0]) + (outs.length > 1 ? " + " + (outs.length - 1) : "") : "no tensor");
  }

  // --- hands --------------------------------------------------------------------------------------

  let drag = null;
  canvas.addEventListener("pointerdown", event => {
    drag = {x: event.clientX, y: event.clientY, moved: false};
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    if (drag) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag = {x: event.clientX, y: event.clientY, moved: true};
      canvas.classList.add("drag");
      view.x += dx;
      view.y += dy;
      keepIn();
      draw();
      return;
    }
    const found = at(event);
    canvas.classList.toggle("over", !!found);
    canvas.title = found ? titleOf(found) : "";
    if (found !== hover) { hover = found; draw(); }
  });
  canvas.addEventListener("pointerup", event => {
    const clicked = drag && !drag.moved;
    drag = null;
    canvas.classList.remove("drag");
    const node = clicked ? at(event) : null;
    if (!node) return;
    if (node.kind === "group") toggle(node);
    else if (node.kind === "leaf") app.choose(node.tensor, canvas);
    else if (S.outs[node.step].length) app.choose(S.outs[node.step][0], canvas);
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { if (hover) { hover = null; draw(); } });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      const rect = canvas.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * .0025), event.clientX - rect.left, event.clientY - rect.top);
      return;
    }
    const unit = event.deltaMode === 1 ? 18 : 1;
    view.x -= (event.shiftKey ? event.deltaY : event.deltaX) * unit;
    view.y -= (event.shiftKey ? 0 : event.deltaY) * unit;
    keepIn();
    draw();
  }, {passive: false});
  canvas.addEventListener("keydown", event => {
    const pan = {ArrowLeft: [60, 0], ArrowRight: [-60, 0]}[event.key];
    if (pan) { view.x += pan[0]; keepIn(); draw(); }
    else if (event.key === "ArrowDown") app.walk(1);
    else if (event.key === "ArrowUp") app.walk(-1);
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(.8);
    else if (event.key === "Enter" && app.chosen != null) {
      const node = nodeOf(app.chosen);
      if (node && node.kind === "group") toggle(node);
      else if (node && node.parent.parent) { toggle(node.parent); show(app.chosen); }
    } else return;
    event.preventDefault();
  });
  function titleOf(node) {
    if (node.kind === "group") return node.label + ": steps " + node.first + " to " + node.last;
    if (node.kind === "leaf") return name(node.tensor) + "  " + type(node.tensor);
    const module = text(S.module[node.step]);
    return "step " + node.step + (module ? "  " + module : "") + "  " + S.outs[node.step].map(name).join(", ");
  }
  byId("graph-in").addEventListener("click", () => zoom(1.25));
  byId("graph-out").addEventListener("click", () => zoom(.8));
  byId("graph-fit").addEventListener("click", fit);
  byId("graph-open").addEventListener("click", () => openAll(true));
  byId("graph-close").addEventListener("click", () => openAll(false));
  relayout();
  return {draw, show, reveal, paint, count: () => plan.shown.length, find: tensor => {
    const node = nodeOf(tensor), rect = canvas.getBoundingClientRect();
    return node && {x: rect.left + view.x + (node.x + node.w / 2) * view.k,
      y: rect.top + view.y + (node.y + node.h / 2) * view.k};
  }};
}
