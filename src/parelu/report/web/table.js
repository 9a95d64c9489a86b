// A table of which a page of rows is in the document: sorted, filtered, turned over, and taken home as CSV.
const ROWS = 50;

class Table {
  // given: {columns: [[title, kind]], lines: [[name, on, method, network, cells]]}; shows: line → boolean.
  constructor(table, given, shows) {
    Object.assign(this, { table, shows, columns: given.columns, sorted: -1, sign: 1, page: 0 });
    this.lines = given.lines.map(([name, on, method, network, cells]) => ({ name, on, method, network, cells: cells.map(cell => Array.isArray(cell) ? cell : [cell, cell]) }));
    this.heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    this.heads.forEach((head, column) => {
      const button = element("button", { type: "button", class: "sort" }, head.textContent);
      button.addEventListener("click", () => this.sort(column));
      head.replaceChildren(button);
    });
    this.foot = element("div", { class: "foot" });
    table.parentElement.after(this.foot);
    table.parentElement.previousElementSibling?.classList.contains("static") && table.parentElement.previousElementSibling.remove();
    this.draw();
  }

  get chosen() {
    const found = this.lines.filter(this.shows);
    if (this.sorted < 0) return found;
    const value = line => line.cells[this.sorted][1], missing = value => value === null || value === undefined;
    return found.sort((a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) * this.sign;
    });
  }

  sort(column) {
    this.sign = this.sorted === column ? -this.sign : this.columns[column][1] === "number" ? -1 : 1;
    [this.sorted, this.page] = [column, 0];
    this.heads.forEach(head => head.removeAttribute("aria-sort"));
    this.heads[column].setAttribute("aria-sort", this.sign > 0 ? "ascending" : "descending");
    this.draw();
  }

  draw() {
    const chosen = this.chosen, pages = Math.max(1, Math.ceil(chosen.length / ROWS));
    this.page = Math.min(this.page, pages - 1);
    const from = this.page * ROWS, shown = chosen.slice(from, from + ROWS);
    this.table.tBodies[0].replaceChildren(...shown.map(line => this.row(line)));
    const turn = (text, step) => {
      const made = element("button", { type: "button" }, text);
      made.disabled = this.page + step < 0 || this.page + step >= pages;
      made.addEventListener("click", () => { this.page += step; this.draw(); this.foot.querySelectorAll("button")[step > 0 ? 1 : 0].focus(); });
      return made;
    };
    const range = chosen.length ? `${(from + 1).toLocaleString("en")} to ${(from + shown.length).toLocaleString("en")} of ${chosen.length.toLocaleString("en")}` : "none";
    const said = element("span", { role: "status" }, chosen.length < this.lines.length ? `${range}; ${(this.lines.length - chosen.length).toLocaleString("en")} filtered out` : range);
    const save = element("button", { type: "button" }, "CSV");
    save.setAttribute("aria-label", "download this table as CSV");
    save.addEventListener("click", () => download(`${this.table.id}.csv`, csv([this.columns.map(([title]) => title), ...chosen.map(line => line.cells.map(([text, value]) => value ?? text))]), "text/csv"));
    this.foot.replaceChildren(...(pages > 1 ? [turn("‹ previous", -1), turn("next ›", 1)] : []), ...(this.lines.length > ROWS || chosen.length < this.lines.length ? [said] : []), save);
  }

  row(line) {
    const row = element("tr", { title: line.name });
    if (line.on) row.className = "on";
    line.cells.forEach(([text, value], column) => {
      const kind = this.columns[column][1], cell = element("td", { class: { text: "text", long: "text long", share: "share" }[kind] ?? "" }, text);
      if (kind === "share") cell.style.setProperty("--share", `${value ?? 0}%`);
      row.append(cell);
    });
    return row;
  }
}

// RFC 4180; a cell that a spreadsheet would take for a formula begins with an apostrophe.
function csv(rows) {
  const cell = value => {
    const text = value === null || value === undefined ? "" : typeof value === "string" && /^[=+@\t\r-]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map(row => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function download(name, text, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
