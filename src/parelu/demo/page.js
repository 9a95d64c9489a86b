"use strict";
// The page of `parelu demo`: an image is chosen or drawn, the client's process is asked, its events are shown.

const element = id => document.getElementById(id);
const duration = s => s < 0.0995 ? `${(1000 * s).toFixed(s < 0.00995 ? 1 : 0)} ms` : s < 9.95 ? `${s.toFixed(2)} s` : `${s.toFixed(0)} s`;
const size = n => n < 1000 ? `${n} B` : n < 999500 ? `${Number((n / 1e3).toPrecision(3))} kB` : `${Number((n / 1e6).toPrecision(3))} MB`;
const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
};
const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

// Pictures: RGB bytes on a canvas, and back.

function show(canvas, rgb, width) {
  const height = Math.ceil(rgb.length / 3 / width), pixels = new ImageData(width, height);
  for (let i = 0; 3 * i < rgb.length; i++) pixels.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function picture(canvas) {
  const rgba = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return Uint8Array.from({ length: rgba.length / 4 * 3 }, (_, i) => rgba[Math.floor(i / 3) * 4 + i % 3]);
}

// 1. The image.

const pad = element("pad"), pen = { x: 14, y: 14, down: false };  // in pixels of the image
let truth = null, page = Math.floor(Math.random() * 100), last = null;

const context = () => pad.getContext("2d", { willReadFrequently: true });

function empty() {
  context().fillStyle = element("ground").value;
  context().fillRect(0, 0, pad.width, pad.height);
  drawn();
}

function drawn() {
  truth = null;
  for (const choice of document.querySelectorAll("#choices input:checked")) choice.checked = false;
}

function stroke(from, to) {
  const own = context();
  own.strokeStyle = element("ink").value;
  own.lineWidth = pad.width / 11;
  own.lineCap = own.lineJoin = "round";
  own.beginPath();
  own.moveTo(from.x, from.y);
  own.lineTo(to.x + 0.01, to.y);
  own.stroke();
  drawn();
}

function at(event) {
  const box = pad.getBoundingClientRect();
  return { x: (event.clientX - box.left) * pad.width / box.width, y: (event.clientY - box.top) * pad.height / box.height };
}

pad.addEventListener("pointerdown", event => {
  pad.setPointerCapture(event.pointerId);
  last = at(event);
  stroke(last, last);
});
pad.addEventListener("pointermove", event => {
  if (!last) return;
  for (const one of event.getCoalescedEvents?.() ?? [event]) {
    const now = at(one);
    stroke(last, now);
    last = now;
  }
});
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { last = null; });

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
pad.addEventListener("keydown", event => {
  if (event.key === " ") {
    pen.down = !pen.down;
    if (pen.down) stroke(pen, pen);
  } else if (event.key in MOVES) {
    const before = { x: pen.x, y: pen.y }, [right, down] = MOVES[event.key];
    pen.x = Math.min(pad.width - 1, Math.max(1, pen.x + right));
    pen.y = Math.min(pad.height - 1, Math.max(1, pen.y + down));
    if (pen.down) stroke(before, pen);
  } else return;
  tell(`Pen ${pen.down ? "down" : "up"}, column ${pen.x}, row ${pen.y}`);
  event.preventDefault();
});
element("clear").addEventListener("click", () => { empty(); pad.focus(); });

async function offer() {
  const { shape, images, labels } = await (await fetch(`images/${page}`)).json();
  const choices = images.map((image, index) => {
    const canvas = make("canvas"), input = make("input", { type: "radio", name: "image", ariaLabel: `test image ${index + 1}` });
    show(canvas, bytesOf(image), shape[1]);
    input.addEventListener("change", () => {
      show(pad, bytesOf(image), shape[1]);
      truth = labels[index];
    });
    return make("label", {}, input, canvas);
  });
  element("choices").replaceChildren(element("choices").querySelector("legend"), ...choices);
  const first = choices[0].querySelector("input");
  first.checked = true;
  first.dispatchEvent(new Event("change"));
}
element("more").addEventListener("click", () => { page += 1; offer(); });

// 2 and 3. What is asked, what the server receives, what comes of it.

const cards = new Map();
let asked = null, isMine = false;  // what this page asks about, where it is known what it shows; whether it was this page

element("ask").addEventListener("click", async () => {
  const image = picture(pad);
  element("ask").disabled = true;
  asked = truth;
  isMine = true;
  show(element("seen"), image, pad.width);
  element("gain").textContent = "";
  for (const card of cards.values()) card.begin();
  const response = await fetch("ask", { method: "POST", body: image, headers: { "Content-Type": "application/octet-stream" } });
  const said = await response.text();
  if (response.ok) return;
  isMine = false;
  tell(said);
});

const STAGES = {
  starting: "The server's process starts.",
  warming: "Both processes warm up: what they compile is kept for the next time.",
  preparing: "Both parties prepare the next answer; for that they need no image.",
  ready: "Ready: the next answer is prepared.",
  asking: "The two processes work on your image.",
};

const LINKS = {
  loopback: "The connection between the two stays on this machine, as fast as it goes.",
  lan: "The connection between the two is slowed down to that of a LAN: 1 Gb/s, 0.5 ms there and back.",
  wan: "The connection between the two is slowed down to that of a WAN: 100 Mb/s, 40 ms there and back.",
};

function tell(text) { element("state").textContent = text; }

function stage({ stage, message, link }) {
  const state = element("state");
  tell(STAGES[stage] ?? `This demonstration ended: ${message}. Start parelu demo again.`);
  if (stage === "asking" && !isMine) {  // another page of this demonstration
    asked = null;
    show(element("seen"), new Uint8Array(3 * pad.width * pad.height), pad.width);
    for (const card of cards.values()) card.begin();
  }
  if (stage === "ready") isMine = false;
  state.classList.toggle("failed", stage === "failed");
  state.classList.toggle("waits", !["ready", "failed"].includes(stage));
  element("ask").disabled = stage !== "ready";
  if (link) element("link").textContent = LINKS[link] ?? `The connection between the two is slowed down to ${link}.`;
}

function received(body) {
  const bytes = bytesOf(body), counts = new Array(256).fill(0);
  for (const byte of bytes) counts[byte] += 1;
  const bits = counts.reduce((sum, n) => n ? sum - n / bytes.length * Math.log2(n / bytes.length) : sum, 0);
  show(element("noise"), bytes, Math.max(1, Math.round(Math.sqrt(2 * bytes.length / 3))));
  element("received").textContent =
    `What the server receives: all ${bytes.length.toLocaleString("en")} bytes of that message, three a pixel, before TLS encrypts ` +
    `them once more. Your image is in there less a random mask that only you know: ${bits.toFixed(2)} of 8 bits of entropy a byte.`;
}

class Card {
  // One network: its answer, its figures, and a line for each layer.
  constructor(key, { title, accuracy, relus, layers }) {
    this.relus = relus;
    this.accuracy = accuracy;
    this.title = title;
    this.label = make("div", { className: "label", textContent: "–" });
    this.shares = make("div", { className: "shares", ariaHidden: "true" });
    this.figures = {};
    const figures = make("div", { className: "figures" }, ...[["seconds", "online"], ["bytes", "online, both ways"], ["turns", "turns on the wire"]].map(([name, words]) => {
      this.figures[name] = make("b", { textContent: "–" });
      return make("div", {}, this.figures[name], make("span", { textContent: words }));
    }));
    this.ahead = make("p", { className: "soft", textContent: "Prepared ahead: –" });
    this.lines = new Map();
    const body = make("tbody", {}, ...layers.map(layer => this.line(layer)));
    const heads = ["layer", "ReLUs", "time", "", "bytes"].map(text => make("th", { textContent: text, scope: "col" }));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
    const name = make("h2", { textContent: `${title}: ${relus.toLocaleString("en")} ReLUs` });
    const head = make("div", { className: "head" }, name, make("span", { className: "accuracy", textContent: `${accuracy.toFixed(1)} % of test images right` }));
    this.node = make("article", { className: `card ${key}` }, head, make("div", { className: "said" }, this.label, this.shares), figures, this.ahead, table);
    this.draw(new Array(10).fill(0));
  }

  line({ name, relus }) {
    const bar = make("i"), cells = [name, relus ? relus.toLocaleString("en") : "", "", "", ""].map(text => make("td", { textContent: text }));
    cells[0].title = name;
    cells[3].append(make("span", { className: "bar" }, bar));
    const row = make("tr", {}, ...cells);
    this.lines.set(name, { row, bar, seconds: 0, time: cells[2], bytes: cells[4] });
    return row;
  }

  begin() {
    this.seconds = this.bytes = 0;
    this.label.textContent = "…";
    this.draw(new Array(10).fill(0));
    for (const figure of Object.values(this.figures)) figure.textContent = "–";
    for (const line of this.lines.values()) {
      line.seconds = 0;
      line.time.textContent = line.bytes.textContent = "";
      line.bar.style.width = "0";
      line.row.classList.remove("now");
    }
  }

  layer({ layer, seconds, bytes }) {
    const line = this.lines.get(layer);
    if (!line) return;
    line.seconds = seconds;
    line.time.textContent = duration(seconds);
    line.bytes.textContent = size(bytes);
    for (const other of this.lines.values()) other.row.classList.toggle("now", other === line);
  }

  prepared({ seconds, bytes }) {
    this.ahead.textContent = `Prepared ahead: ${duration(seconds)}, ${size(bytes)}`;
  }

  answer({ label, shares, seconds, bytes, turns }) {
    Object.assign(this, { seconds, bytes });
    this.label.textContent = label;
    if (asked !== null) {
      const verdict = label === asked ? ["right", "right"] : ["wrong", `it is a ${asked}`];
      this.label.append(make("small", { className: verdict[0], textContent: verdict[1] }));
    }
    this.draw(shares);
    this.figures.seconds.textContent = duration(seconds);
    this.figures.bytes.textContent = size(bytes);
    this.figures.turns.textContent = turns;
    for (const line of this.lines.values()) line.row.classList.remove("now");
  }

  refuse() {
    this.label.textContent = "–";
    for (const line of this.lines.values()) line.row.classList.remove("now");
  }

  draw(shares) {
    // Of many classes the ten likeliest.
    const least = [...shares].sort((a, b) => b - a)[9] ?? 0, kept = [...shares.entries()].filter(([, share]) => share >= least).slice(0, 10);
    this.shares.replaceChildren(...kept.map(([index, share]) => {
      const bar = make("i", { title: `${(100 * share).toFixed(0)} %` });
      bar.style.height = `${5 * share}rem`;
      return make("div", {}, bar, `${index}`);
    }));
  }
}

function scale() {
  // Of both networks, so that bars beside each other compare.
  const lines = [...cards.values()].flatMap(card => [...card.lines.values()]);
  const longest = Math.max(1e-9, ...lines.map(line => line.seconds));
  for (const line of lines) line.bar.style.width = `${100 * line.seconds / longest}%`;
}

function gain() {
  const full = cards.get("full"), reduced = cards.get("reduced");
  if (!full?.seconds || !reduced?.seconds) return;
  const times = ratio => `${ratio < 9.95 ? ratio.toFixed(1) : ratio.toFixed(0)} times`;
  const sooner = full.seconds / reduced.seconds, points = full.accuracy - reduced.accuracy;
  element("gain").textContent =
    `${times(full.relus / reduced.relus)} fewer ReLUs: ${sooner > 1.05 ? `the answer came ${times(sooner)} sooner` : "the answer came no sooner this time"}, ` +
    `with ${times(full.bytes / reduced.bytes)} fewer bytes, ${points > 0.05 ? `for ${points.toFixed(1)} points of accuracy` : "at no loss of accuracy"}.`;
}

const events = new EventSource("events"), on = (name, act) => events.addEventListener(name, event => act(JSON.parse(event.data)));
events.addEventListener("error", () => stage({ stage: "failed", message: "the client's process does not answer" }));
on("state", stage);
on("network", content => {
  const card = new Card(content.network, content);
  cards.set(content.network, card);
  element("sides").replaceChildren(...[...cards.values()].map(one => one.node));
  element("trust").textContent = `Whom this rests on: ${content.trust}.`;
});
on("prepared", content => cards.get(content.network)?.prepared(content));
on("layer", content => {
  if (content.phase !== "online") return;
  cards.get(content.network)?.layer(content);
  scale();
});
on("wire", content => received(content.body));
on("refused", content => {
  cards.get(content.network)?.refuse();
  element("gain").textContent = `No answer: ${content.message}.`;
});
on("answer", content => {
  cards.get(content.network)?.answer(content);
  scale();
  if (content.network === "reduced") gain();
});

empty();
offer();
