// All tensors as rows, of which only those in sight are there: filtered, ordered, walked by keys.

const ROW = 25, HEAD = 28, SPARE = 6;

function makeTable(grid, app) {
  const shown = new Set(COLUMNS.filter(varies).map(column => column.key));
  let columns = [], rows = [], placeOf = new Map(), sort = {key: "step", down: false}, pool = [];
  const head = make("div", {class: "row head", role: "row", "aria-rowindex": 1});
  const sheet = make("div", {role: "presentation"});
  const empty = make("div", {class: "empty", role: "presentation"}, "No tensor is like that");
  empty.hidden = true;
  grid.append(head, sheet, empty);
  const render = oncePerFrame(paint);

  // --- which rows ---------------------------------------------------------------------------------

  const search = byId("filter");
  const haystacks = lazily(() => Array.from({length: numTensors}, (_, tensor) => [name(tensor), ofStep("op")(tensor),
    ofStep("module")(tensor), ofStep("source")(tensor), type(tensor), text(T.memory[tensor]), text(T.origin[tensor]),
    marks(tensor), T.digest[tensor] || ""].join("\n")));
  function matcher() {
    const query = search.value.trim();
    search.classList.remove("wrong");
    search.removeAttribute("aria-invalid");
    if (!query) return () => true;
    if (byId("filter-regex").checked) {
      let pattern;
      try { pattern = new RegExp(query, "imu"); } catch {
        search.classList.add("wrong");
        search.setAttribute("aria-invalid", "true");
        return () => false;
      }
      return tensor => pattern.test(haystacks()[tensor]);
    }
    const words = query.toLowerCase().split(/\s+/);
    return tensor => { const hay = haystacks()[tensor].toLowerCase(); return words.every(word => hay.includes(word)); };
  }
  function refresh() {
    const matches = matcher(), weights = byId("filter-weights").checked;
    const bad = byId("filter-bad").checked, place = byId("filter-place").checked;
    rows = [];
    for (let tensor = 0; tensor < numTensors; tensor++) {
      if (!weights && text(T.origin[tensor]) === "weight") continue;
      if (bad && !isBad(tensor)) continue;
      if (place && !T.in_place[tensor] && T.alias_of[tensor] == null) continue;
      if (matches(tensor)) rows.push(tensor);
    }
    const column = COLUMNS.find(item => item.key === sort.key);
    const keys = new Map(rows.map(tensor => [tensor, column.get(tensor)]));
    const last = value => value == null || value === "" || Number.isNaN(value);
    rows.sort((one, two) => {
      const a = keys.get(one), b = keys.get(two);
      if (last(a) || last(b)) return last(a) - last(b) || one - two;
      return (a < b ? -1 : a > b ? 1 : 0) * (sort.down ? -1 : 1) || one - two;
    });
    placeOf = new Map(rows.map((tensor, at) => [tensor, at]));
    byId("count").textContent = whole.format(rows.length) + " of " + whole.format(numTensors);
    grid.setAttribute("aria-rowcount", rows.length + 1);
    sheet.style.height = rows.length * ROW + "px";
    empty.hidden = rows.length > 0;
    render();
  }

  // --- the frame ----------------------------------------------------------------------------------

  function frame() {
    columns = COLUMNS.filter(column => shown.has(column.key));
    const widths = columns.map(column => column.width + "px").join(" ");
    const total = columns.reduce((sum, column) => sum + column.width, 0);
    sheet.style.width = total + "px";
    head.style.gridTemplateColumns = widths;
    head.style.width = total + "px";
    grid.setAttribute("aria-colcount", columns.length);
    head.replaceChildren(...columns.map((column, at) => {
      const button = make("button", {title: "Sort by " + column.label, tabindex: -1, onclick: () => {
        sort = {key: column.key, down: sort.key === column.key ? !sort.down : !!column.num && column.key !== "step"};
        for (const cell of head.children) cell.removeAttribute("aria-sort");
        button.parentElement.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
        grid.scrollTop = 0;
        refresh();
      }}, column.label);
      const sorted = sort.key === column.key ? (sort.down ? "descending" : "ascending") : null;
      return make("div", {role: "columnheader", class: kind(column), "aria-colindex": at + 1, "aria-sort": sorted}, button);
    }));
    for (const row of pool) row.element.remove();
    pool = [];
    render();
  }
  const kind = column => [column.num && "num", column.code && "code", column.pin].filter(Boolean).join(" ");
  function makeRow() {
    const cells = columns.map((column, at) => make("div", {role: "gridcell", class: kind(column), "aria-colindex": at + 1}));
    const element = make("div", {class: "row", role: "row"}, ...cells);
    element.style.gridTemplateColumns = head.style.gridTemplateColumns;
    element.style.width = head.style.width;
    const spark = columns.findIndex(column => column.spark);
    const canvas = spark < 0 ? null : make("canvas", {"aria-hidden": "true"});
    if (canvas) cells[spark].append(canvas);
    sheet.append(element);
    return {element, cells, canvas, tensor: -1, at: -1};
  }

  // --- rows in sight ------------------------------------------------------------------------------

  function paint() {
    const first = Math.max(0, Math.floor(grid.scrollTop / ROW) - SPARE);
    const last = Math.min(rows.length, Math.ceil((grid.scrollTop + grid.clientHeight) / ROW) + SPARE);
    while (pool.length < last - first) pool.push(makeRow());
    // A row keeps its element while it is in sight: focus and hover stay, and little is written anew.
    const free = [], there = new Map();
    for (const row of pool) {
      if (row.at >= first && row.at < last && rows[row.at] === row.tensor) there.set(row.at, row);
      else free.push(row);
    }
    for (let at = first; at < last; at++) if (!there.has(at)) fill(free.pop(), at);
    for (const row of free) { row.element.hidden = true; row.at = row.tensor = -1; }
    for (const row of pool) {
      const chosen = row.tensor >= 0 && row.tensor === app.chosen;
      row.element.setAttribute("aria-selected", chosen);
    }
    const at = app.chosen == null ? undefined : placeOf.get(app.chosen);
    if (at >= first && at < last) grid.setAttribute("aria-activedescendant", "row-" + at);
    else grid.removeAttribute("aria-activedescendant");
  }
  function fill(row, at) {
    const tensor = rows[at];
    row.at = at;
    row.tensor = tensor;
    row.element.id = "row-" + at;
    row.element.hidden = false;
    row.element.classList.toggle("odd", at % 2 === 1);
    row.element.style.top = HEAD + at * ROW + "px";
    row.element.setAttribute("aria-rowindex", at + 2);
    columns.forEach((column, place) => {
      const cell = row.cells[place];
      if (column.spark) {
        cell.setAttribute("aria-label", histogramWords(tensor));
        drawSpark(row.canvas, tensor, column.width - 16);
        return;
      }
      const said = column.say(tensor) || (column.other && stepOf(tensor) < 0 ? column.other(tensor) : "");
      cell.textContent = said;
      cell.title = column.hint ? column.hint(tensor) : column.num ? "" : said;
      const mark = column.mark ? column.mark(tensor) : column.quiet === said ? "faint" : "";
      cell.classList.toggle("bad", mark === "bad");
      cell.classList.toggle("faint", mark === "faint" || said === "–" || said === "0");
    });
  }
  function redraw() {
    for (const row of pool) row.tensor = -1;
    render();
  }

  // --- hands --------------------------------------------------------------------------------------

  function show(tensor) {
    const at = placeOf.get(tensor);
    if (at !== undefined) {
      const top = at * ROW, room = grid.clientHeight - HEAD;
      if (top < grid.scrollTop) grid.scrollTop = top;
      else if (top + ROW > grid.scrollTop + room - 12) grid.scrollTop = top + ROW - room + 12;
    }
    render();
  }
  function step(by) {
    if (!rows.length) return;
    const at = placeOf.get(app.chosen);
    const next = at === undefined ? 0 : Math.min(rows.length - 1, Math.max(0, at + by));
    app.choose(rows[next], grid);
  }
  sheet.addEventListener("click", event => {
    const row = pool.find(item => item.element.contains(event.target));
    if (row && row.tensor >= 0) app.choose(row.tensor, grid);
  });
  sheet.addEventListener("dblclick", () => { if (app.chosen != null) app.reveal(app.chosen); });
  grid.addEventListener("keydown", event => {
    if (event.target !== grid) return;
    const page = Math.max(1, Math.floor((grid.clientHeight - HEAD) / ROW) - 1);
    const by = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length}[event.key];
    if (by !== undefined && !event.ctrlKey && !event.metaKey && !event.altKey) step(by);
    else if (event.key === "Enter" && app.chosen != null) app.reveal(app.chosen);
    else return;
    event.preventDefault();
  });
  grid.addEventListener("scroll", render, {passive: true});
  search.addEventListener("input", refresh);
  search.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "Enter") { grid.focus(); step(0); event.preventDefault(); }
    if (event.key === "Escape" && search.value) { search.value = ""; refresh(); event.preventDefault(); }
  });
  for (const id of ["filter-regex", "filter-bad", "filter-place", "filter-weights"])
    byId(id).addEventListener("change", () => { grid.scrollTop = 0; refresh(); });
  byId("columns-list").append(...COLUMNS.filter(column => !column.always).map(column => {
    const box = make("input", {type: "checkbox"});
    box.checked = shown.has(column.key);
    box.addEventListener("change", () => {
      if (box.checked) shown.add(column.key); else shown.delete(column.key);
      frame();
    });
    return make("label", {}, box, column.label);
  }));
  document.addEventListener("click", event => {
    if (!byId("columns").contains(event.target)) byId("columns").open = false;
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") byId("columns").open = false;
  });
  refresh();
  frame();
  return {paint, render, redraw, show, step};
}
