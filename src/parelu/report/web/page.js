// What brings the page to life: its data are in the document, and nothing is fetched.
document.documentElement.classList.add("live");
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.style.display = "block";
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

function hideTip() { tip.style.display = "none"; }

const units = (value, sizes) => { const [size, unit] = sizes.find(([size]) => Math.abs(value) >= size) ?? sizes.at(-1); return `${+(value / size).toPrecision(3)}${unit}`; };
const FORMATS = {
  count: value => value.toLocaleString("en"),
  percent: value => value.toFixed(1) + " %",
  seconds: value => units(value, [[1, " s"], [1e-3, " ms"], [1e-6, " µs"]]),
  bytes: value => units(value, [[1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " B"]]),
  short: value => units(value, [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]),
};

// What all plots and tables of networks leave out.
const filter = { hidden: new Set(), network: "", text: "", frontier: false };
const shown = one => !filter.hidden.has(one.method) && (!filter.network || one.network === filter.network)
  && (!filter.frontier || one.on) && (!filter.text || one.words.includes(filter.text));
const views = [];
const redraw = () => views.forEach(view => { if ("page" in view) view.page = 0; view.draw(); });

const { columns, rows } = data.networks;
const networks = rows.map(values => {
  const row = Object.fromEntries(columns.map(([key], i) => [key, values[i]]));
  const text = columns.slice(4).filter(([key]) => row[key] !== null).map(([key, title, kind]) => typeof row[key] === "boolean" ? (row[key] ? title : "") : `${title}: ${(FORMATS[kind] ?? String)(row[key])}`);
  return {
    row, method: row.method, network: row.network, on: row.on_frontier, words: `${row.label} ${row.name}`.toLowerCase(), hollow: row.squares > 0,
    range: row.test_lowest == null ? null : [row.test_lowest, row.test_highest],
    xs: axis => [row[axis.key]], ys: axis => [row[axis.key]],
    tip: () => [row.label, `${row.method}: ${row.name}`, ...text.filter(Boolean)].join("\n"),
  };
});

function board(vertices, axis) {
  const worth = one => one.item.row.validation, cost = one => one.x;
  const apart = axis.priced ? [[vertices, ""]] : [[vertices.filter(one => !one.item.hollow), ""], [vertices.filter(one => one.item.hollow), "2 4"]];
  return apart.map(([some, dash]) => [frontier(some, cost, worth), dash]);
}

const axis = one => ({ ...one, format: FORMATS[one.kind === "count" ? "short" : one.kind] });
const place = name => document.getElementById(name);
if (place("frontier-plot"))
  views.push(new Plot(place("frontier-plot"), { title: "Frontier", items: networks, xs: data.axes.x.map(axis), ys: data.axes.y.map(axis), styles: data.styles, shows: shown, board }));

function colour(share) {  // viridis, dark for many ReLUs
  const stops = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];
  const at = Math.min(3.999, Math.max(0, share * 4)), [a, b] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  return `rgb(${a.map((one, i) => Math.round(one + (b[i] - one) * (at % 1))).join(" ")})`;
}
if (place("curves-plot")) {
  const logs = data.curves.map(one => Math.log(one.relus || 1)), [least, most] = [Math.min(...logs), Math.max(...logs)];
  const items = data.curves.map((one, i) => ({
    ...one, words: `${one.label} ${one.name}`.toLowerCase(), colour: colour(0.12 + 0.88 * (logs[i] - least) / (most - least || 1)),
    xs: () => one.epoch, ys: axis => one[axis.key],
    tip: vertex => `${one.label}\n${one.relus.toLocaleString("en")} ReLUs, seed ${one.seed}\n${one.method}: ${one.name}\n${+vertex.y.toPrecision(4)} after epoch ${vertex.x}`,
  }));
  const y = [{ key: "validation_accuracy", title: "validation accuracy, %" }, { key: "loss", title: "training loss" }];
  views.push(new Plot(place("curves-plot"), { title: "Training", items, xs: [{ key: "epoch", title: "epoch", log: false, format: value => String(+value.toPrecision(6)) }], ys: y, styles: data.styles, shows: shown, lines: true }));
}

for (const table of document.querySelectorAll("table[data-grid]")) {
  const given = data.grids[table.id];
  const made = new Table(table, given, () => true);
  made.lines.forEach(line => { line.words = `${line.name} ${line.cells[0][0]}`.toLowerCase(); });
  if (table.dataset.grid === "networks") made.shows = shown;
  views.push(made);
}

// The filter, which is the legend too.
const bar = place("filter");
const toggle = (text, act) => {
  const made = element("button", { type: "button", "aria-pressed": true }, text);
  made.addEventListener("click", () => { made.setAttribute("aria-pressed", act()); redraw(); });
  return made;
};
if (bar) {
  for (const [method, [colour, mark]] of Object.entries(data.styles)) {
    const made = toggle(method === "train" ? "all ReLUs" : method, () => {
      filter.hidden.has(method) ? filter.hidden.delete(method) : filter.hidden.add(method);
      return !filter.hidden.has(method);
    });
    const key = element("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": true });
    key.append(element("path", { d: MARKS[mark](8, 8, 5), fill: colour ?? "var(--ink)" }));
    made.prepend(key);
    bar.append(made);
  }
  const label = element("label"), only = element("input", { type: "checkbox" });
  only.addEventListener("change", () => { filter.frontier = only.checked; redraw(); });
  label.append(only, " frontier only");
  bar.append(label);
  const known = [...new Set(networks.map(one => one.network))];
  if (known.length > 1) {
    const select = element("select", { "aria-label": "network" });
    select.append(element("option", { value: "" }, "all networks"), ...known.map(name => element("option", { value: name }, name)));
    select.addEventListener("change", () => { filter.network = select.value; redraw(); });
    bar.append(select);
  }
  const search = element("input", { type: "search", placeholder: "find a network", "aria-label": "find a network" });
  search.addEventListener("input", () => { filter.text = search.value.toLowerCase(); redraw(); });
  const save = (name, make) => {
    const made = element("button", { type: "button", class: "save", "aria-label": `download all networks as ${name}` }, name);
    made.addEventListener("click", make);
    return made;
  };
  bar.append(search,
    save("CSV", () => download("networks.csv", csv([columns.map(([key]) => key), ...rows]), "text/csv")),
    save("JSON", () => download("networks.json", JSON.stringify(networks.map(one => one.row), null, 1), "application/json")));
}

// Discs over points of the figures that stand as they were drawn.
for (const point of document.querySelectorAll("circle.tip")) {
  point.querySelector("title").remove();
  point.addEventListener("mousemove", event => showTip(point.dataset.tip, event.clientX, event.clientY));
  point.addEventListener("mouseleave", hideTip);
}

const theme = place("theme"), isDark = matchMedia("(prefers-color-scheme: dark)");
theme.addEventListener("click", () => {
  const root = document.documentElement, now = root.dataset.theme ?? (isDark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
