// Layers, order and places, for each open group on its own: a group's box never meets another's. Layers are the
// longest paths; wires that pass layers get a lane there, one for all readers of a tensor; places in a layer are
// the least squares to the neighbours' with a least distance between (pooled adjacent violators).

const BOX = {w: 172, h: 42}, LEAF = {w: 150, h: 28}, LANE = 10;
const GAP = {x: 22, y: 26}, PAD = {x: 16, top: 32, bottom: 16};
const MAX_LANES = 20000;

function layoutTree(root) {
  const {steps, leaves, shown} = visibleNodes(root);
  const wires = [], seen = new Set(), inside = new Map();
  const numbers = new Map(shown.map((node, at) => [node, at]));
  const connect = (from, to) => {
    if (!from || from === to) return;
    const key = numbers.get(from) * shown.length + numbers.get(to);
    if (seen.has(key)) return;
    seen.add(key);
    wires.push({from, to, parts: cutWire(from, to, inside)});
  };
  for (let step = 0; step < numSteps; step++)
    for (const tensor of S.reads[step]) {
      const maker = T.step[tensor];
      connect(maker >= 0 ? steps[maker] : leaves.get(tensor), steps[step]);
    }
  placeGroup(root, inside, {lanes: MAX_LANES});
  settle(root, 0, 0);
  for (const wire of wires) wire.points = route(wire);
  return {steps, leaves, shown, wires, root};
}

// A wire in parts, one for each group it passes: out of the groups around its source, through the innermost one
// that holds both ends, into the groups around its target. A part without `a` comes in at the top, one without
// `b` leaves at the bottom.
function cutWire(from, to, inside) {
  const chain = node => { const up = []; for (let n = node; n; n = n.parent) up.push(n); return up.reverse(); };
  const a = chain(from), b = chain(to);
  let at = 0;
  while (a[at + 1] && b[at + 1] && a[at + 1] === b[at + 1]) at++;
  const parts = [];
  const add = (group, part) => {
    if (!inside.has(group)) inside.set(group, []);
    inside.get(group).push(part);
    parts.push(part);
  };
  for (let up = a.length - 1; up > at + 1; up--) add(a[up - 1], {from, a: a[up], b: null, lanes: []});
  add(a[at], {from, a: a[at + 1], b: b[at + 1], lanes: []});
  for (let down = at + 2; down < b.length; down++) add(b[down - 1], {from, a: null, b: b[down], lanes: []});
  return parts;
}

function placeGroup(group, inside, spare) {
  for (const child of group.children) {
    if (child.kind === "group" && child.open) placeGroup(child, inside, spare);
    else Object.assign(child, child.kind === "leaf" ? LEAF : BOX, {inDx: 0, outDx: 0});
  }
  const parts = inside.get(group) || [];
  const layers = layersOf(group.children, parts.filter(part => part.a && part.b));
  addLanes(layers, parts, spare);
  const links = neighbours(layers, parts);
  order(layers, links);
  spread(layers, links);
  let y = PAD.top, left = Infinity, right = -Infinity;
  for (const layer of layers) {
    const height = Math.max(...layer.map(node => node.h));
    for (const node of layer) {
      if (node.kind === "lane") node.h = height;
      node.y = y + (height - node.h) / 2;
      node.x = node.cx - node.w / 2;
      left = Math.min(left, node.x);
      right = Math.max(right, node.x + node.w);
    }
    y += height + GAP.y;
  }
  group.w = Math.max(right - left, 120) + 2 * PAD.x;
  const shift = (group.w - right + left) / 2 - left;
  for (const layer of layers) for (const node of layer) node.x += shift;
  group.h = y - GAP.y + PAD.bottom;
  group.inner = layers;
  // Where the main path comes in and goes out, off the middle.
  const ends = group.children.filter(child => child.kind !== "leaf");
  const off = (child, dx) => child ? child.x + child.w / 2 + dx - group.w / 2 : 0;
  group.inDx = off(ends[0], ends[0]?.inDx);
  group.outDx = off(ends[ends.length - 1], ends[ends.length - 1]?.outDx);
}

function layersOf(children, wires) {
  for (const child of children) { child.layer = 0; child.before = 0; child.soonest = Infinity; }
  const out = new Map(children.map(child => [child, []]));
  for (const wire of wires) { out.get(wire.a).push(wire.b); wire.b.before++; }
  for (const child of children)  // in the order they ran, so every reader comes later
    for (const reader of out.get(child)) reader.layer = Math.max(reader.layer, child.layer + 1);
  for (const child of children) {
    if (child.before || !out.get(child).length) continue;
    child.layer = Math.min(...out.get(child).map(reader => reader.layer)) - 1;
  }
  const layers = [];
  for (const child of children) (layers[child.layer] ||= []).push(child);
  return layers.filter(Boolean).map((layer, at) => { layer.forEach(node => node.layer = at); return layer; });
}

const upper = part => part.a ? part.a.layer : -1;
const lower = (part, layers) => part.b ? part.b.layer : layers.length;

function addLanes(layers, parts, spare) {
  const bundles = new Map();
  for (const part of parts) {
    // What leaves a tensor here is one lane; what comes in from above is another.
    if (!bundles.has(part.from)) bundles.set(part.from, []);
    bundles.get(part.from).push(part);
  }
  const spans = [...bundles.values()].map(bundle =>
    [bundle, Math.max(...bundle.map(part => lower(part, layers))) - upper(bundle[0]) - 1]);
  for (const [bundle, span] of spans.sort((one, two) => one[1] - two[1])) {
    if (span < 1 || spare.lanes < span) continue;
    spare.lanes -= span;
    const begin = upper(bundle[0]) + 1, lanes = [];
    for (let layer = begin; layer < begin + span; layer++) {
      const lane = {kind: "lane", w: LANE, h: 0, layer, inDx: 0, outDx: 0};
      layers[layer].push(lane);
      lanes.push(lane);
    }
    for (const part of bundle) part.lanes = lanes.slice(0, lower(part, layers) - begin);
  }
}

// Links between adjacent layers, heavier where a bend would be ugly: along lanes, and from step to next step.
function neighbours(layers, parts) {
  const links = {up: new Map(), down: new Map()};
  for (const layer of layers) for (const node of layer) { links.up.set(node, []); links.down.set(node, []); }
  const seen = new Set();
  const join = (a, b, weight) => {
    links.down.get(a).push([b, weight]);
    links.up.get(b).push([a, weight]);
  };
  for (const part of parts) {
    if (lower(part, layers) - upper(part) > 1 && !part.lanes.length) continue;
    const path = [part.a, ...part.lanes, part.b].filter(Boolean);
    for (let at = 0; at + 1 < path.length; at++) {
      const [one, two] = [path[at], path[at + 1]];
      if (two.kind === "lane" && seen.has(two)) continue;
      if (two.kind === "lane") seen.add(two);
      const straight = one.kind === "lane" && two.kind === "lane";
      const next = one.last >= 0 && two.first === one.last + 1;
      join(one, two, straight ? 6 : next ? 8 : one.kind === "lane" || two.kind === "lane" ? 1e-4 : 2);
    }
  }
  return links;
}

function order(layers, links) {
  const place = () => layers.forEach(layer => layer.forEach((node, at) => node.at = at / layer.length));
  place();
  for (let sweep = 0; sweep < 6; sweep++) {
    const down = sweep % 2 === 0;
    const side = down ? links.up : links.down;
    for (const layer of down ? layers : [...layers].reverse()) {
      if (layer.length < 2) continue;
      for (const node of layer) {
        let sum = 0, total = 0;
        for (const [other, weight] of side.get(node)) { sum += other.at * weight; total += weight; }
        node.key = total ? sum / total : node.at;
      }
      layer.sort((one, two) => one.key - two.key || (one.kind === "lane") - (two.kind === "lane"));
      layer.forEach((node, at) => node.at = at / layer.length);
    }
  }
}

function spread(layers, links) {
  for (const layer of layers) {
    let x = 0;
    for (const node of layer) { node.cx = x + node.w / 2; x += node.w + GAP.x; }
    for (const node of layer) node.cx -= (x - GAP.x) / 2;
  }
  const sides = [links.up, links.down];
  for (let sweep = 0; sweep < 8; sweep++) {
    const down = sweep % 2 === 0, both = sweep >= 5;
    for (const layer of down ? layers : [...layers].reverse()) {
      for (const node of layer) {
        let sum = 0, total = 0;
        for (const side of both ? sides : [sides[down ? 0 : 1]])
          for (const [other, weight] of side.get(node)) {
            const dx = side === links.up ? other.outDx - node.inDx : other.inDx - node.outDx;
            sum += (other.cx + dx) * weight;
            total += weight;
          }
        node.want = total ? sum / total : node.cx;
        node.pull = total || .1;
      }
      apart(layer);
    }
  }
}

const between = (one, two) => (one.w + two.w) / 2 + (one.kind === two.kind && one.kind === "lane" ? 4 : GAP.x);

function apart(layer) {
  const blocks = [];
  let offset = 0;
  layer.forEach((node, at) => {
    if (at) offset += between(layer[at - 1], node);
    node.offset = offset;
    let block = {nodes: [node], weight: node.pull, mean: node.want - offset};
    while (blocks.length && blocks[blocks.length - 1].mean > block.mean) {
      const before = blocks.pop(), weight = before.weight + block.weight;
      const mean = (before.mean * before.weight + block.mean * block.weight) / weight;
      block = {nodes: [...before.nodes, ...block.nodes], weight, mean};
    }
    blocks.push(block);
  });
  for (const block of blocks) for (const node of block.nodes) node.cx = block.mean + node.offset;
}

// From places within groups to places on the sheet.
function settle(group, x, y) {
  for (const layer of group.inner)
    for (const node of layer) {
      node.x += x;
      node.y += y;
      if (node.kind === "group" && node.open) settle(node, node.x, node.y);
    }
}

function route({from, to, parts}) {
  const points = [[from.x + from.w / 2, from.y + from.h]];
  for (const {lanes} of parts)
    lanes.forEach((lane, at) => {
      const x = lane.x + lane.w / 2;
      const same = other => other && Math.abs(other.x + other.w / 2 - x) < .5;
      if (!same(lanes[at - 1])) points.push([x, lane.y]);
      if (!same(lanes[at + 1])) points.push([x, lane.y + lane.h]);
    });
  points.push([to.x + to.w / 2, to.y]);
  return points;
}
