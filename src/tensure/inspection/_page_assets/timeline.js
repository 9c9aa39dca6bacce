// Live memory after each step as an area; a click or an arrow key goes to the step.

function makeTimeline(canvas, tip, app) {
  const edge = {left: 2, right: 2, top: 22, bottom: 4};
  let over = -1;
  const most = Math.max(1, ...chunked(S.live_bytes));
  const peak = S.live_bytes.indexOf(most);
  const draw = oncePerFrame(paint);
  let width = canvas.clientWidth, height = canvas.clientHeight;  // asking for them lays the page out: once a drawing
  const across = () => width - edge.left - edge.right;
  const xOf = step => edge.left + (step + .5) / Math.max(1, numSteps) * across();
  const yOf = value => edge.top + (1 - value / most) * (height - edge.top - edge.bottom);

  function paint() {
    const context = surface(canvas);
    if (!context || !numSteps) return;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const base = height - edge.bottom;
    context.beginPath();
    context.moveTo(edge.left, base);
    for (let step = 0; step < numSteps; step++) {
      const y = yOf(S.live_bytes[step]);
      context.lineTo(edge.left + step / numSteps * across(), y);
      context.lineTo(edge.left + (step + 1) / numSteps * across(), y);
    }
    context.lineTo(edge.left + across(), base);
    context.closePath();
    context.globalAlpha = .28;
    context.fillStyle = colours.fill;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = colours.fill;
    context.lineWidth = 1.2;
    context.stroke();
    context.fillStyle = colours.bad;
    badStep.forEach((bad, step) => {
      if (bad) context.fillRect(xOf(step) - 1, base - 7, Math.max(2, across() / numSteps), 7);
    });
    const weights = restingBytes();
    if (weights > most * .04) {
      context.strokeStyle = colours.mute;
      context.setLineDash([3, 4]);
      context.beginPath();
      context.moveTo(edge.left, yOf(weights));
      context.lineTo(edge.left + across(), yOf(weights));
      context.stroke();
      context.setLineDash([]);
      label(context, "weights and inputs " + bytes(weights), edge.left + across() - 6, yOf(weights) + 13, "right");
    }
    label(context, "peak " + bytes(most) + " at step " + peak, Math.min(Math.max(xOf(peak), 190), across() - 90), edge.top - 8, "center");
    context.fillStyle = colours.ink;
    context.beginPath();
    context.arc(xOf(peak), yOf(most), 3, 0, 7);
    context.fill();
    const chosen = app.chosen == null ? -1 : T.step[app.chosen];
    for (const [step, colour] of [[over, colours.mute], [chosen, colours.accent]]) {
      if (step < 0) continue;
      context.strokeStyle = colour;
      context.lineWidth = 1.6;
      context.beginPath();
      context.moveTo(xOf(step), edge.top - 4);
      context.lineTo(xOf(step), base);
      context.stroke();
    }
    if (chosen >= 0) {
      canvas.setAttribute("aria-valuenow", chosen);
      canvas.setAttribute("aria-valuetext", sentence(chosen));
    }
  }
  function label(context, said, x, y, align) {
    context.font = "11.5px " + FONT;
    context.textAlign = align;
    context.fillStyle = colours.soft;
    context.fillText(said, x, y);
  }
  const sentence = step => "step " + step + ", " + text(S.op[step]) + ": " + bytes(S.live_bytes[step]);
  const stepAt = event => {
    const x = event.clientX - canvas.getBoundingClientRect().left - edge.left;
    return Math.min(numSteps - 1, Math.max(0, Math.floor(x / across() * numSteps)));
  };
  const restingBytes = lazily(() => {
    let sum = 0;
    const counted = new Set();
    for (let tensor = 0; tensor < numTensors; tensor++) {
      if (T.step[tensor] >= 0 || counted.has(T.storage[tensor])) continue;
      counted.add(T.storage[tensor]);
      sum += T.nbytes[tensor];
    }
    return Math.min(sum, most);
  });

  canvas.setAttribute("aria-valuemax", Math.max(0, numSteps - 1));
  canvas.addEventListener("pointermove", event => {
    if (!numSteps) return;
    over = stepAt(event);
    tip.hidden = false;
    tip.textContent = sentence(over);
    const x = xOf(over) + 14;
    tip.style.left = Math.max(8, x + tip.offsetWidth > width ? x - tip.offsetWidth - 20 : x) + "px";
    if (event.buttons & 1) app.chooseStep(over, canvas);
    draw();
  });
  canvas.addEventListener("pointerleave", () => { over = -1; tip.hidden = true; draw(); });
  canvas.addEventListener("pointerdown", event => { if (numSteps) app.chooseStep(stepAt(event), canvas); });
  canvas.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 20, PageDown: -20}[event.key];
    if (by !== undefined) app.walk(by);
    else if (event.key === "Home") app.chooseStep(0, canvas);
    else if (event.key === "End") app.chooseStep(numSteps - 1, canvas);
    else return;
    event.preventDefault();
  });
  return {draw, paint};
}

// In parts: a call takes only so many arguments.
function chunked(values) {
  const found = [];
  for (let at = 0; at < values.length; at += 10000) found.push(Math.max(...values.slice(at, at + 10000)));
  return found;
}
