// Text into the page. All of it is text: names, origins and errors come from strangers.

const MOST_ROWS = 100;
const FILTER_FROM = 12;

const byId = (id) => document.getElementById(id);

/** Return an element with text and attributes. */
function make(tag, attributes = {}, ...parts) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...parts);
  return element;
}

/** Change an element's text, if it is another one: screen readers and selections stay undisturbed. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Return a word with its state: good, warn or bad in colour and shape, and always in the word itself. */
const mark = (text, state) => make("span", { class: "mark", "data-state": state }, text);

/** Return text of less weight on a line of its own. */
const small = (text, state) => make("small", state ? { "data-state": state } : {}, text);

/**
 * A section with a table. `columns` are [title, class]; narrow windows show rows as cards, which takes their
 * roles away, so all are written out.
 */
class Table {
  constructor(section, { title, empty, columns }) {
    const id = `${section.id}-title`;
    this.count = make("span", { class: "count" });
    this.filter = make("input", { type: "search", "aria-label": `Filter: ${title}`, placeholder: "Filter", hidden: "" });
    this.filter.addEventListener("input", () => this.show(this.items, this.cells));
    this.body = make("tbody", { role: "rowgroup" });
    this.empty = make("p", { class: "muted", hidden: "" }, empty);
    this.more = make("p", { class: "muted", hidden: "" });
    this.columns = columns;
    this.rows = new Map();
    const titles = columns.map(([text, kind]) => make("th", { scope: "col", role: "columnheader", class: kind }, text));
    this.table = make(
      "table",
      { role: "table" },
      make("caption", { class: "hidden" }, title),
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...titles)),
      this.body,
    );
    section.setAttribute("aria-labelledby", id);
    section.append(
      make("div", { class: "title" }, make("h2", { id }, title, " ", this.count), this.filter),
      this.table,
      this.empty,
      this.more,
    );
  }

  /** Show items; `cells(item)` returns its key, and of each column text or nodes. */
  show(items, cells) {
    this.items = items;
    this.cells = cells;
    say(this.count, items.length ? numbers.format(items.length) : "");
    this.filter.hidden = items.length < FILTER_FROM;
    const wanted = this.filter.hidden ? "" : this.filter.value.trim().toLowerCase();
    const found = [];
    for (const item of items) {
      const [key, ...told] = cells(item);
      if (key.toLowerCase().includes(wanted)) found.push([key, told]);
    }
    const shown = found.slice(0, MOST_ROWS);
    const keys = new Set(shown.map(([key]) => key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    shown.forEach(([key, told], index) => {
      const row = this.row(key, told);
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
    this.table.hidden = !shown.length;
    this.empty.hidden = items.length > 0;
    const left = found.length - shown.length;
    this.more.hidden = items.length === 0 || (shown.length > 0 && left === 0);
    say(this.more, shown.length ? `${numbers.format(left)} more: filter by name to see them.` : "Nothing of that name.");
  }

  row(key, told) {
    let row = this.rows.get(key);
    if (!row) {
      row = make("tr", { role: "row" });
      this.columns.forEach(([title, kind], column) => {
        const attributes = column
          ? { role: "cell", class: kind, "data-title": title }
          : { role: "rowheader", scope: "row", class: kind };
        row.append(make(column ? "td" : "th", attributes));
      });
      this.rows.set(key, row);
    }
    told.forEach((parts, column) => {
      const cell = row.children[column];
      const next = make("td", {}, ...[parts].flat().filter((part) => part !== null && part !== ""));
      if (cell.innerHTML !== next.innerHTML) cell.replaceChildren(...next.childNodes);
    });
    return row;
  }
}
