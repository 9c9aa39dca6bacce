// Elements, canvases at the screen's resolution, colours of the theme.

const byId = id => document.getElementById(id);
const darkness = matchMedia("(prefers-color-scheme: dark)");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const get = key => style.getPropertyValue("--" + key).trim();
  colours = {};
  for (const key of ["ink", "soft", "line", "page", "card", "accent", "good", "bad", "mute", "fill", "tint",
    "stripe", "group", "wire", "mid", "neg", "pos"]) colours[key] = get(key);
  for (const key of ["linear", "norm", "act", "math", "shape", "pool", "other", "leaf"])
    colours[key] = get("k-" + key);
}

// The context of a canvas cleared and scaled so that 1 is one CSS pixel; null while it has no size.
function surface(canvas, width = canvas.clientWidth, height = canvas.clientHeight) {
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  const w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

const FONT = 'system-ui,-apple-system,"Segoe UI",sans-serif';
const widths = new Map();
function fitText(context, value, room) {
  const key = context.font + room + "\n" + value;
  let found = widths.get(key);
  if (found === undefined) {
    found = value.slice(0, 80);
    if (context.measureText(found).width > room) {
      let low = 0, high = found.length;
      while (low < high) {
        const half = (low + high + 1) >> 1;
        if (context.measureText(found.slice(0, half) + "…").width <= room) low = half;
        else high = half - 1;
      }
      found = found.slice(0, low) + "…";
    }
    if (widths.size > 20000) widths.clear();
    widths.set(key, found);
  }
  return found;
}

// Many requests within one frame draw once.
function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

const KINDS = [
  ["linear", /conv|matmul|linear|addmm|baddbmm|bmm|^mm|einsum|dot|attention|embedding|gemm|lstm|gru/],
  ["norm", /norm/],
  ["pool", /pool|mean|sum|max|min|argmax|argmin|amax|amin|var|std|softmax|cumsum|topk|sort/],
  ["act", /relu|hardtanh|sigmoid|tanh|gelu|silu|swish|mish|elu|clamp|softplus|erf|dropout/],
  ["shape", /view|reshape|transpose|permute|slice|select|cat|stack|expand|squeeze|flatten|split|chunk|pad|clone|copy|contiguous|unbind|index|gather|scatter|roll|flip|^t$|detach|alias|narrow|repeat|to_copy/],
  ["math", /add|sub|mul|div|neg|pow|sqrt|exp|log|sin|cos|abs|where|eq|ne|lt|le|gt|ge|bitwise|logical|maximum|minimum|round|floor|quant/],
];
const kinds = new Map();
function kindOf(op) {
  let kind = kinds.get(op);
  if (kind === undefined) {
    const short = op.replace(/^.*::/, "").toLowerCase();
    kind = (KINDS.find(([, pattern]) => pattern.test(short)) || ["other"])[0];
    kinds.set(op, kind);
  }
  return kind;
}
