// Layers, order and places, for each open group on its own: a group's box never meets another's. Layers are the
// longest paths; wires that pass layers get a lane there, one for all readers of a tensor; places in a layer are
// the least squares to the neighbours' with a least distance between (pooled adjacent violators).

const BOX = {w: 172, h: 42}, LEAF = {w: 150, h: 28}, LANE = 10;
const GAP = {x: 22, y: 26}, PAD = {x: 16, top: 32, bottom: 16};
const MAX_LANES = 20000;

function layoutTree(root) {
  const {steps, leaves, shown} = visibleNodes(root);
  const wires = [];
  const seen = new Set();
  const numbers = new Map(shown.map((node, at) => [node, at]));
  const connect = (from, to, tensor) => {
    if (!from || from === to) return;
    const key = numbers.get(from) * shown.length + numbers.get(to);
    if (seen.has(key)) return;
    seen.add(key);
    wires.push(lift({from, to, tensor, lanes: []}));
  };
  for (let step = 0; step < numSteps; step++)
    for (const tensor of S.reads[step]) {
      const maker = T.step[tensor];
      connect(maker >= 0 ? steps[maker] : leaves.get(tensor), steps[step], tensor);
    }
  const inside = new Map();
  for (const wire of wires) {
    if (!inside.has(wire.home)) inside.set(wire.home, []);
    inside.get(wire.home).push(wire);
  }
  placeGroup(root, inside);
  settle(root, 0, 0);
  for (const wire of wires) wire.points = route(wire);
  return {steps, leaves, shown, wires, root};
}

// A wire belongs to the innermost group that holds both its ends, and joins two children of that.
function lift(wire) {
  const chain = node => { const up = []; for (let n = node; n; n = n.parent) up.push(n); return up.reverse(); };
  const a = chain(wire.from), b = chain(wire.to);
  let at = 0;
  while (a[at + 1] && b[at + 1] && a[at + 1] === b[at + 1]) at++;
  wire.home = a[at];
  wire.a = a[at + 1];
  wire.b = b[at + 1];
  return wire;
}

function placeGroup(group, inside) {
  for (const child of group.children) {
    if (child.kind === "group" && child.open) placeGroup(child, inside);
    else Object.assign(child, child.kind === "leaf" ? LEAF : BOX);
  }
  const wires = (inside.get(group) || []).filter(wire => wire.a !== wire.b);
  const layers = layersOf(group.children, wires);
  addLanes(layers, wires);
  const links = neighbours(layers, wires);
  order(layers, links);
  spread(layers, links);
  let y = PAD.top, left = Infinity, right = -Infinity;
  for (const layer of layers) {
    const height = Math.max(...layer.map(node => node.h));
    for (const node of layer) {
      node.y = y + (height - node.h) / 2;
      node.x = node.cx - node.w / 2;
      left = Math.min(left, node.x);
      right = Math.max(right, node.x + node.w);
    }
    y += height + GAP.y;
  }
  for (const layer of layers) for (const node of layer) node.x += PAD.x - left;
  group.w = Math.max(right - left, 120) + 2 * PAD.x;
  group.h = y - GAP.y + PAD.bottom;
  group.inner = layers;
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

function addLanes(layers, wires) {
  const reach = new Map();
  for (const wire of wires) {
    const far = reach.get(wire.a) || {span: 0, wires: []};
    far.span = Math.max(far.span, wire.b.layer - wire.a.layer);
    far.wires.push(wire);
    reach.set(wire.a, far);
  }
  let left = MAX_LANES;
  for (const [from, far] of [...reach].sort((one, two) => one[1].span - two[1].span)) {
    if (far.span < 2 || (left -= far.span - 1) < 0) continue;
    const lanes = [];
    for (let layer = from.layer + 1; layer < from.layer + far.span; layer++) {
      const lane = {kind: "lane", w: LANE, h: 0, layer};
      layers[layer].push(lane);
      lanes.push(lane);
    }
    for (const wire of far.wires) wire.lanes = lanes.slice(0, wire.b.layer - from.layer - 1);
  }
}

// Links between adjacent layers, heavier where a bend would be ugly: along lanes, and from step to next step.
function neighbours(layers, wires) {
  const links = {up: new Map(), down: new Map()};
  for (const layer of layers) for (const node of layer) { links.up.set(node, []); links.down.set(node, []); }
  const seen = new Set();
  const join = (a, b, weight) => {
    links.down.get(a).push([b, weight]);
    links.up.get(b).push([a, weight]);
  };
  for (const {a, b, lanes} of wires) {
    if (b.layer - a.layer > 1 && !lanes.length) continue;
    const path = [a, ...lanes, b];
    for (let at = 0; at + 1 < path.length; at++) {
      const [one, two] = [path[at], path[at + 1]];
      if (two.kind === "lane" && seen.has(two)) continue;
      if (two.kind === "lane") seen.add(two);
      const straight = one.kind === "lane" && two.kind === "lane";
      const next = one.last >= 0 && two.first === one.last + 1;
      join(one, two, straight ? 6 : next ? 8 : one.kind === "lane" || two.kind === "lane" ? .4 : 2);
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
          for (const [other, weight] of side.get(node)) { sum += other.cx * weight; total += weight; }
        node.want = total ? sum / total : node.cx;
        node.pull = total || .1;
      }
      apart(layer);
    }
  }
}

function apart(layer) {
  const blocks = [];
  let offset = 0;
  layer.forEach((node, at) => {
    if (at) offset += layer[at - 1].w / 2 + node.w / 2 + GAP.x;
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

function route({from, to, lanes}) {
  const points = [[from.x + from.w / 2, from.y + from.h]];
  lanes.forEach((lane, at) => {
    const x = lane.x + lane.w / 2;
    const same = other => other && Math.abs(other.x + other.w / 2 - x) < .5;
    if (!(same(lanes[at - 1]) && same(lanes[at + 1]))) points.push([x, lane.y]);
  });
  points.push([to.x + to.w / 2, to.y]);
  return points;
}
