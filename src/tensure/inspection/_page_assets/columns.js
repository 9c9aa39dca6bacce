// The columns of the table: how each fact is ordered and how it is said.

const stepOf = tensor => T.step[tensor];
const ofStep = key => tensor => stepOf(tensor) >= 0 ? text(S[key][stepOf(tensor)]) : "";
const fact = key => tensor => T[key][tensor];
const factText = key => tensor => text(T[key][tensor]);
const plain = (key, label, width, get, more = {}) => ({key, label, width, get, say: get, ...more});
const counted = (key, label, width, get, more = {}) =>
  ({key, label, width, get, say: tensor => count(get(tensor)), num: true, ...more});
const measured = (key, label, width = 84) =>
  ({key, label, width, get: numeric(key), say: tensor => figure(T[key][tensor]), num: true});
const troubled = tensor => isBad(tensor) ? "bad" : "";

// Infinity comes as text; texts that are no numbers stand last.
function numeric(key) {
  return tensor => {
    const value = T[key][tensor];
    return typeof value === "string" ? Number(value) : value;
  };
}

function marks(tensor) {
  const found = [];
  if (T.in_place[tensor]) found.push("in place");
  if (T.alias_of[tensor] != null) found.push("alias of " + name(T.alias_of[tensor]));
  if (outputOf.has(tensor)) found.push("output " + outputOf.get(tensor));
  return found.join(", ");
}

const scales = row => !row ? "" : row[1] === row[2] ? figure(row[1]) : figure(row[1]) + " … " + figure(row[2]);
const zeros = row => !row ? "" : row[3] === row[4] ? count(row[3]) : count(row[3]) + " … " + count(row[4]);

const COLUMNS = [
  {key: "step", label: "#", width: 52, get: tensor => stepOf(tensor), num: true, pin: "pin", always: true,
    say: tensor => stepOf(tensor) < 0 ? "·" : String(stepOf(tensor)), mark: troubled},
  plain("name", "name", 164, name, {pin: "pin2", always: true, mark: troubled}),
  plain("op", "op", 116, ofStep("op"), {other: tensor => text(T.origin[tensor])}),
  {key: "shape", label: "shape", width: 116, get: fact("size"), say: factText("shape"), code: true},
  plain("dtype", "dtype", 54, factText("dtype")),
  {key: "spread", label: "histogram", width: 104, spark: true, get: numeric("std"), say: () => ""},
  measured("minimum", "min"),
  measured("maximum", "max"),
  measured("mean", "mean"),
  measured("std", "std"),
  measured("l2", "L2"),
  counted("zeros", "zeros", 76, fact("zeros"),
    {say: tensor => T.zeros[tensor] == null ? "–" : T.zeros[tensor] ? share(T.zeros[tensor] / T.size[tensor]) : "0",
      get: tensor => T.zeros[tensor] == null ? null : T.zeros[tensor] / (T.size[tensor] || 1),
      hint: tensor => count(T.zeros[tensor]) + " of " + count(T.size[tensor])}),
  counted("nans", "NaN", 66, fact("nans"), {mark: tensor => T.nans[tensor] ? "bad" : "faint"}),
  counted("infinities", "Inf", 66, fact("infinities"), {mark: tensor => T.infinities[tensor] ? "bad" : "faint"}),
  plain("first_at", "first NaN/Inf", 104, factText("first_at"), {code: true, mark: troubled}),
  counted("denormals", "denormals", 82, fact("denormals")),
  {key: "nbytes", label: "bytes", width: 80, get: fact("nbytes"), say: tensor => bytes(T.nbytes[tensor]), num: true},
  {key: "live", label: "live mem.", width: 90, num: true,
    get: tensor => stepOf(tensor) < 0 ? null : S.live_bytes[stepOf(tensor)],
    say: tensor => stepOf(tensor) < 0 ? "–" : bytes(S.live_bytes[stepOf(tensor)])},
  {key: "time", label: "time", width: 76, num: true,
    get: tensor => stepOf(tensor) < 0 ? null : S.microseconds[stepOf(tensor)],
    say: tensor => stepOf(tensor) < 0 ? "–" : duration(S.microseconds[stepOf(tensor)])},
  plain("module", "module", 170, ofStep("module")),
  plain("source", "source", 120, ofStep("source"), {code: true}),
  plain("marks", "alias / in place", 150, marks),
  counted("rank", "rank", 48, fact("rank")),
  plain("memory", "contiguity", 92, factText("memory"), {quiet: "contiguous"}),
  {key: "strides", label: "strides", width: 140, get: factText("strides"), say: factText("strides"), code: true},
  counted("storage", "storage", 64, fact("storage"), {say: tensor => String(T.storage[tensor])}),
  counted("offset", "offset", 64, fact("offset")),
  plain("device", "device", 64, factText("device")),
  plain("layout", "layout", 76, factText("layout")),
  plain("phase", "phase", 76, tensor => stepOf(tensor) < 0 ? "" : S.backward[stepOf(tensor)] ? "backward" : "forward"),
  counted("over_limit", "over limit", 80, fact("over_limit")),
  {key: "scale", label: "scale", width: 110, get: tensor => quantised.get(tensor)?.[1] ?? null,
    say: tensor => scales(quantised.get(tensor)), num: true},
  {key: "zero_point", label: "zero point", width: 90, get: tensor => quantised.get(tensor)?.[3] ?? null,
    say: tensor => zeros(quantised.get(tensor)), num: true},
  {key: "saturated", label: "saturated", width: 80, get: tensor => quantised.get(tensor)?.[6] ?? null,
    say: tensor => quantised.has(tensor) ? share(quantised.get(tensor)[6]) : "", num: true},
  {key: "digest", label: "digest", width: 250, get: fact("digest"), say: tensor => T.digest[tensor] || "", code: true},
];

// A column that says the same of every tensor is left out until it is asked for.
function varies(column) {
  if (column.always) return true;
  if (column.spark) return histogramOf.size > 0;
  let first;
  for (let tensor = 0; tensor < numTensors; tensor++) {
    if (T.step[tensor] < 0) continue;
    const value = column.key === "shape" ? T.shape[tensor] : column.get(tensor);
    if (first === undefined) first = value;
    else if (value !== first) return true;
  }
  return false;
}
