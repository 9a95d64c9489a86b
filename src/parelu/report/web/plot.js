// A plot of points or lines that is hovered over, zoomed and walked through by keys. It draws one path a method.
const SVG = "http://www.w3.org/2000/svg";
const MARKS = {
  o: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
  s: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  "^": (x, y, r) => `M${x},${y - r}l${r},${2 * r}h${-2 * r}z`,
  v: (x, y, r) => `M${x},${y + r}l${r},${-2 * r}h${-2 * r}z`,
  D: (x, y, r) => `M${x},${y - 1.3 * r}l${1.3 * r},${1.3 * r}l${-1.3 * r},${1.3 * r}l${-1.3 * r},${-1.3 * r}z`,
  P: (x, y, r) => `M${x - r / 3},${y - r}h${2 * r / 3}v${2 * r / 3}h${2 * r / 3}v${2 * r / 3}h${-2 * r / 3}v${2 * r / 3}h${-2 * r / 3}v${-2 * r / 3}h${-2 * r / 3}v${-2 * r / 3}h${2 * r / 3}z`,
  X: (x, y, r) => `M${x - r},${y - r}l${r},${r * 0.6}l${r},${-r * 0.6}l${-r * 0.6},${r}l${r * 0.6},${r}l${-r},${-r * 0.6}l${-r},${r * 0.6}l${r * 0.6},${-r}z`,
  "*": (x, y, r) => "M" + [...Array(10).keys()].map(i => {
    const long = (i % 2 ? 0.55 : 1.4) * r, turn = Math.PI * i / 5;
    return `${x + long * Math.sin(turn)},${y - long * Math.cos(turn)}`;
  }).join("L") + "z",
};

function element(name, attributes = {}, text = "") {
  const made = name in { svg: 1, g: 1, path: 1, line: 1, rect: 1, text: 1 } ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function ticks(low, high, isLog, most = 8) {
  if (isLog && high >= 8 * low) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const one of [1, 2, 5]) found.push(one * 10 ** power);
    const inside = found.filter(tick => tick >= low && tick <= high);
    return inside.length > 1.5 * most ? inside.filter(tick => /^1/.test(tick.toExponential())) : inside;
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return found;
}

function grouped(all, key) {
  const found = new Map();
  for (const one of all) found.has(key(one)) ? found.get(key(one)).push(one) : found.set(key(one), [one]);
  return found;
}

// Those that no other dominates, by rising cost: as parelu.runs.pareto.
function frontier(items, cost, worth) {
  let best = -Infinity;
  return [...items].sort((a, b) => cost(a) - cost(b) || worth(b) - worth(a))
    .filter(item => worth(item) > best && (best = worth(item), true));
}

class Plot {
  // items: {method, network, tip(), xs(axis), ys(axis), colour?}; axes: {key, title, log, format}; shows: item → boolean.
  constructor(box, { title, items, xs, ys, styles, shows, lines = false, board = null }) {
    Object.assign(this, { box, title, items, xs, ys, styles, shows, lines, board, chosen: null, view: null });
    this.x = xs[0], this.y = ys[0], this.isLog = this.x.log;
    this.box.replaceChildren(this.controls(), this.stage = element("div", {
      class: "stage", tabindex: 0, role: "group", "aria-roledescription": "plot", "aria-label": `${title}. Arrow keys go from network to network, plus and minus zoom, 0 shows all.`,
    }));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  controls() {
    const bar = element("div", { class: "controls" });
    const select = (name, axes, changed) => {
      if (axes.length < 2) return;
      const label = element("label", {}, `${name} `), made = element("select");
      axes.forEach((axis, i) => made.append(element("option", { value: i }, axis.title)));
      made.addEventListener("change", () => { changed(axes[made.value]); this.view = null; this.draw(); });
      label.append(made);
      bar.append(label);
    };
    select("over", this.xs, axis => { this.x = axis; this.isLog = log.checked = axis.log; });
    select("of", this.ys, axis => { this.y = axis; });
    const label = element("label"), log = element("input", { type: "checkbox" });
    log.checked = this.isLog;
    log.addEventListener("change", () => { this.isLog = log.checked; this.view = null; this.draw(); });
    label.append(log, " log scale");
    if (!this.lines) bar.append(label);
    const button = (text, name, act) => {
      const made = element("button", { type: "button", "aria-label": name, title: name }, text);
      made.addEventListener("click", act);
      bar.append(made);
    };
    button("+", "zoom in", () => this.zoom(0.6));
    button("−", "zoom out", () => this.zoom(1 / 0.6));
    button("all", "show all", () => this.reset());
    return bar;
  }

  get visible() { return this.items.filter(item => this.shows(item)); }

  // Each visible vertex: its item, value and place.
  vertices() {
    const found = [];
    for (const item of this.visible) {
      const xs = item.xs(this.x), ys = item.ys(this.y);
      xs.forEach((x, i) => { if (x !== null && ys[i] !== null) found.push({ item, x, y: ys[i] }); });
    }
    const positive = found.map(one => one.x).filter(x => x > 0), least = Math.min(...positive, Infinity);
    if (this.isLog) for (const one of found) if (one.x <= 0) one.x = least < Infinity ? least / 2 : 1;
    return found;
  }

  domain(found) {
    if (this.view) return this.view;
    const range = (values, isLog, margin) => {
      let [low, high] = [Math.min(...values), Math.max(...values)];
      if (!values.length) return isLog ? [1, 10] : [0, 1];
      if (isLog) { const factor = Math.max(high / low, 1.5) ** margin; return [low / factor, high * factor]; }
      const more = (high - low || Math.abs(high) || 1) * margin;
      return [low - more, high + more];
    };
    return { x: range(found.map(one => one.x), this.isLog, 0.05), y: range(found.map(one => one.y), false, 0.07) };
  }

  draw() {
    const width = this.stage.clientWidth, height = Math.min(430, Math.max(280, 0.55 * width));
    if (!width) return;
    const left = 56, right = 14, top = 12, bottom = 44, found = this.vertices(), { x, y } = this.domain(found);
    const scale = this.isLog ? Math.log : value => value;
    const across = value => left + (width - left - right) * (scale(value) - scale(x[0])) / (scale(x[1]) - scale(x[0]));
    const up = value => height - bottom - (height - top - bottom) * (value - y[0]) / (y[1] - y[0]);
    const inverse = (px, py) => {
      const part = (px - left) / (width - left - right), s = scale(x[0]) + part * (scale(x[1]) - scale(x[0]));
      return [this.isLog ? Math.exp(s) : s, y[0] + (height - bottom - py) / (height - top - bottom) * (y[1] - y[0])];
    };
    for (const one of found) { one.px = across(one.x); one.py = up(one.y); }
    this.drawn = { found, inverse, x, y, area: [left, top, width - left - right, height - top - bottom], across, up };
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.summary(found) });
    this.grid(svg, width, height, left, right, top, bottom);
    const clip = element("svg", { x: left, y: top, width: width - left - right, height: height - top - bottom, viewBox: `${left} ${top} ${width - left - right} ${height - top - bottom}` });
    svg.append(clip);
    this.lines ? this.curves(clip, found) : this.marks(clip, found);
    this.cross = element("path", { class: "cross", d: "" });
    this.frame = element("rect", { class: "frame", width: 0, height: 0 });
    svg.append(this.cross, this.frame);
    this.stage.replaceChildren(svg);
  }

  summary(found) {
    const count = new Set(found.map(one => one.item)).size;
    return `${this.title}: ${this.y.title} over ${this.x.title} of ${count} networks`;
  }

  grid(svg, width, height, left, right, top, bottom) {
    const { x, y, across, up } = this.drawn;
    for (const tick of ticks(x[0], x[1], this.isLog, width / 90)) {
      svg.append(element("line", { class: "grid", x1: across(tick), x2: across(tick), y1: top, y2: height - bottom }));
      svg.append(element("text", { class: "tick", x: across(tick), y: height - bottom + 16, "text-anchor": "middle" }, this.x.format(tick)));
    }
    for (const tick of ticks(y[0], y[1], false, height / 55)) {
      svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: up(tick), y2: up(tick) }));
      svg.append(element("text", { class: "tick", x: left - 7, y: up(tick) + 4, "text-anchor": "end" }, String(+tick.toPrecision(6))));
    }
    svg.append(element("text", { class: "axis", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, this.x.title));
    svg.append(element("text", { class: "axis", x: 0, y: 0, transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, this.y.title));
  }

  marks(svg, found) {
    const [left, , width] = this.drawn.area;
    for (const one of found.filter(one => one.item.method === "train"))
      svg.append(element("line", { class: "full", x1: left, x2: left + width, y1: one.py, y2: one.py }));
    for (const [best, dash] of this.board(found, this.x)) {
      const d = best.map((one, i) => i ? `H${one.px}V${one.py}` : `M${one.px},${one.py}`).join("");
      svg.append(element("path", { class: "steps", d, "stroke-dasharray": dash }));
    }
    const by = grouped(found, one => one.item.method);
    for (const [method, group] of by) {
      const [colour, mark] = this.styles[method];
      const ranges = group.filter(one => one.item.range && this.y.key === "test").map(one => `M${one.px},${this.drawn.up(one.item.range[0])}V${this.drawn.up(one.item.range[1])}`);
      if (ranges.length) svg.append(element("path", { d: ranges.join(""), class: "range", stroke: colour ?? "var(--ink)" }));
      for (const [hollow, some] of [[false, group.filter(one => !one.item.hollow)], [true, group.filter(one => one.item.hollow)]]) {
        const d = some.map(one => MARKS[mark](one.px, one.py, found.length > 300 ? 4 : 5.5)).join("");
        const fill = colour ?? "var(--ink)";
        if (d) svg.append(element("path", { d, class: found.length > 300 && !hollow ? "mark many" : "mark", "data-method": method, fill: hollow ? "var(--paper)" : fill, stroke: hollow ? fill : "var(--paper)" }));
      }
    }
  }

  curves(svg, found) {
    for (const [item, group] of grouped(found, one => one.item)) {
      const d = group.map((one, i) => `${i ? "L" : "M"}${one.px.toFixed(1)},${one.py.toFixed(1)}`).join("");
      svg.append(element("path", { d, class: "curve", stroke: item.colour }));
    }
  }

  listen() {
    const at = event => { const box = this.stage.firstChild.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let from = null;
    this.stage.addEventListener("pointerdown", event => { if (event.pointerType === "mouse" && event.button === 0) from = at(event); });
    this.stage.addEventListener("pointermove", event => {
      const [px, py] = at(event);
      if (from && Math.hypot(px - from[0], py - from[1]) > 6) {
        const [x, y] = [Math.min(px, from[0]), Math.min(py, from[1])];
        for (const [key, value] of Object.entries({ x, y, width: Math.abs(px - from[0]), height: Math.abs(py - from[1]) })) this.frame.setAttribute(key, value);
        return this.leave();
      }
      this.show(this.nearest(px, py), event.clientX, event.clientY);
    });
    const end = event => {
      if (from) {
        const [px, py] = at(event), { inverse } = this.drawn;
        if (Math.abs(px - from[0]) > 6 && Math.abs(py - from[1]) > 6) {
          const [a, b] = [inverse(...from), inverse(px, py)];
          this.view = { x: [Math.min(a[0], b[0]), Math.max(a[0], b[0])], y: [Math.min(a[1], b[1]), Math.max(a[1], b[1])] };
          this.draw();
        }
        this.frame.setAttribute("width", 0);
      }
      from = null;
    };
    this.stage.addEventListener("pointerup", end);
    this.stage.addEventListener("pointerleave", event => { end(event); this.leave(); });
    this.stage.addEventListener("dblclick", () => this.reset());
    this.stage.addEventListener("blur", () => this.leave());
    this.stage.addEventListener("wheel", event => { if (event.ctrlKey || event.metaKey) { event.preventDefault(); this.zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, at(event)); } }, { passive: false });
    this.stage.addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) this.walk(step);
      else if (event.key === "+" || event.key === "=") this.zoom(0.6);
      else if (event.key === "-") this.zoom(1 / 0.6);
      else if (event.key === "0") this.reset();
      else if (event.key === "Escape") this.leave();
      else return;
      event.preventDefault();
    });
  }

  // Of the points within the frame.
  inside() {
    const [left, top, width, height] = this.drawn.area;
    return this.drawn.found.filter(one => one.px >= left && one.px <= left + width && one.py >= top && one.py <= top + height);
  }

  nearest(px, py) {
    let best = null, least = 22;
    for (const one of this.inside()) {
      const far = Math.hypot(one.px - px, one.py - py);
      if (far < least) [best, least] = [one, far];
    }
    return best;
  }

  walk(step) {
    const ends = new Map(this.inside().map(one => [one.item, one])), stops = [...ends.values()].sort((a, b) => a.px - b.px || b.py - a.py);
    if (!stops.length) return;
    const here = stops.findIndex(one => one.item === this.chosen?.item);
    const next = stops[(here + step + stops.length) % stops.length] ?? stops[0];
    const box = this.stage.firstChild.getBoundingClientRect();
    this.show(next, box.left + next.px, box.top + next.py);
  }

  show(one, x, y) {
    this.chosen = one;
    if (!one) return this.leave();
    this.cross.setAttribute("d", MARKS.o(one.px, one.py, 9));
    showTip(one.item.tip(one), x, y);
  }

  leave() {
    this.chosen = null;
    this.cross?.setAttribute("d", "");
    hideTip();
  }

  zoom(factor, at = null) {
    const { x, y, inverse, area: [left, top, width, height] } = this.drawn, [cx, cy] = at ?? [left + width / 2, top + height / 2];
    const corner = (px, py) => inverse(cx + factor * (px - cx), cy + factor * (py - cy));
    const [a, b] = [corner(left, top + height), corner(left + width, top)];
    this.view = { x: [a[0], b[0]], y: [a[1], b[1]] };
    this.draw();
  }

  reset() { this.view = null; this.draw(); }
}
