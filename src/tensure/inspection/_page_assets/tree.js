// Steps as a tree of modules. A group is one unbroken run of steps whose module path begins alike, so edges
// between the children of a group always go forward, however often a module is called.

const DEPTH = 24;
const WANTED = 140;

function groupNode(label, parent) {
  return {kind: "group", label, parent, children: [], open: false, first: -1, last: -1, bad: false, size: 0};
}

function buildTree() {
  const root = groupNode("", null);
  root.open = true;
  const inputs = [];
  for (let tensor = 0; tensor < numTensors; tensor++) {
    const origin = text(T.origin[tensor]);
    if (T.step[tensor] < 0 && origin !== "weight" && readers[tensor].length)
      inputs.push({kind: "leaf", tensor, parent: root, first: -1, last: -1});
  }
  root.children.push(...inputs);
  let open = [root], path = [];
  for (let step = 0; step < numSteps; step++) {
    const module = text(S.module[step]);
    const parts = module ? module.split(".").slice(0, DEPTH) : [];
    let same = 0;
    while (same < parts.length && same < path.length && parts[same] === path[same]) same++;
    open.length = same + 1;
    for (const part of parts.slice(same)) {
      const group = groupNode(part, open[open.length - 1]);
      open[open.length - 1].children.push(group);
      open.push(group);
    }
    path = parts;
    const parent = open[open.length - 1];
    parent.children.push({kind: "step", step, parent, first: step, last: step, bad: badStep[step]});
  }
  root.children.forEach(tidy);
  root.children = root.children.map(child => simpler(child, root));
  measure(root);
  openSome(root);
  return root;
}

function tidy(node) {
  if (node.kind !== "group") return;
  node.children.forEach(tidy);
  node.children = node.children.map(child => simpler(child, node));
}

// A group of one step is the step; a group of one group bears both names.
function simpler(node, parent) {
  node.parent = parent;
  if (node.kind !== "group" || node.children.length !== 1) return node;
  const only = node.children[0];
  if (only.kind === "group") only.label = node.label + "." + only.label;
  only.parent = parent;
  return only;
}

function measure(node) {
  if (node.kind !== "group") { node.size = 1; return; }
  node.size = 0;
  for (const child of node.children) {
    measure(child);
    node.size += child.kind === "leaf" ? 0 : child.size;
    node.bad ||= child.bad;
    if (child.first >= 0) {
      if (node.first < 0) node.first = child.first;
      node.last = child.last;
    }
  }
}

// The outermost groups first, as many as a person can overlook.
function openSome(root) {
  let shown = root.children.length, level = root.children.filter(child => child.kind === "group");
  while (level.length) {
    const next = [];
    for (const group of level) {
      if (shown + group.children.length - 1 > WANTED) continue;
      group.open = true;
      shown += group.children.length - 1;
      next.push(...group.children.filter(child => child.kind === "group"));
    }
    level = next;
  }
}

function eachGroup(node, visit) {
  for (const child of node.children) if (child.kind === "group") { visit(child); eachGroup(child, visit); }
}

// What stands for each step now: itself, or the outermost closed group around it.
function visibleNodes(root) {
  const steps = new Array(numSteps), leaves = new Map(), shown = [];
  const walk = node => {
    for (const child of node.children) {
      if (child.kind === "group" && child.open) { walk(child); continue; }
      shown.push(child);
      if (child.kind === "leaf") leaves.set(child.tensor, child);
      else for (const step of stepsOf(child)) steps[step] = child;
    }
  };
  walk(root);
  return {steps, leaves, shown};
}

function stepsOf(node) {
  const found = [];
  for (let step = node.first; step >= 0 && step <= node.last; step++) found.push(step);
  return found;
}
