// The list of features: fetched a page at a time, drawn only where it is in view.
import { html, nothing } from "/lib/lit-html.js";
import { label as known } from "/static/labels.js";
import { address, ask, count, go, number, opened, params, percent } from "/static/state.js";
import { chip, parts } from "/static/tokens.js";

const ROW = 30; // pixels, as in style.css
const FIXED = { layer: "Layer", feature: "Feature", frequency: "Frequency", mean: "Mean", max: "Max" };
const MEANING = {
  frequency: "share of positions at which the feature is active",
  mean: "mean activation where active",
  max: "highest activation",
};

export class List {
  constructor(redraw) {
    this.redraw = redraw;
    this.query = null;
    this.total = 0;
    this.of = 0;
    this.columns = [];
    this.histogram = [];
    this.pages = new Map();
    this.cursor = 0;
    this.top = 0;
    this.height = 800;
    this.loading = false;
    this.error = "";
    this.asked = null;
    this.drawn = 0; // lists shown so far, for whoever waits for one
    this.wanted = new Set();
  }

  // Fetches the list of a query; the former one stays in view until then.
  async show(query, pageSize) {
    if (query === this.query) return;
    this.asked?.abort();
    this.asked = new AbortController();
    this.query = query;
    this.pageSize = pageSize;
    this.loading = true;
    this.wanted.clear();
    this.redraw();
    try {
      const answer = await ask(`/api/table?${query}`, this.asked.signal);
      Object.assign(this, { total: answer.total, of: answer.of, columns: answer.columns, histogram: answer.histogram });
      this.pages = new Map([[0, answer.rows]]);
      this.error = "";
      this.cursor = 0;
      this.scroll(0);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.error = error.message;
    }
    this.loading = false;
    this.redraw();
    this.drawn += 1;
    document.body.dataset.lists = String(this.drawn);
  }

  async fetchPage(page) {
    if (this.loading || this.pages.has(page) || this.wanted.has(page)) return;
    this.wanted.add(page);
    const query = this.query;
    try {
      const answer = await ask(`/api/table?${query}&offset=${page * this.pageSize}`, this.asked?.signal);
      if (query === this.query) this.pages.set(page, answer.rows);
    } catch (error) {
      if (error.name !== "AbortError") this.error = error.message;
    }
    this.wanted.delete(page);
    this.redraw();
  }

  row(index) {
    return this.pages.get(Math.floor(index / this.pageSize))?.[index % this.pageSize];
  }

  // [layer, feature] in a row of the list, or null where it is not fetched yet.
  at(index) {
    const row = this.row(index);
    return row ? [row[0], row[1]] : null;
  }

  scroll(top) {
    this.top = top;
    const pane = document.querySelector(".rows");
    if (pane) pane.scrollTop = top;
  }

  // Moves the cursor; its row scrolls into view.
  move(index) {
    if (!this.total) return;
    this.cursor = Math.max(0, Math.min(this.total - 1, index));
    const pane = document.querySelector(".rows");
    const head = pane?.querySelector("thead")?.offsetHeight ?? 0;
    const seen = (pane?.clientHeight ?? this.height) - head;
    const y = this.cursor * ROW;
    if (y < this.top) this.scroll(y);
    else if (y + ROW > this.top + seen) this.scroll(y + ROW - seen);
    this.redraw();
  }

  scrolled(pane) {
    this.top = pane.scrollTop;
    this.height = pane.clientHeight;
    this.redraw();
  }

  view() {
    const first = Math.max(0, Math.floor(this.top / ROW) - 8);
    const last = Math.min(this.total, Math.ceil((this.top + this.height) / ROW) + 8);
    if (this.pageSize) {
      for (let page = Math.floor(first / this.pageSize); page * this.pageSize < last; page += 1) this.fetchPage(page);
    }
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.rowView(index));
    return html`<div class="list ${this.loading ? "stale" : ""}">
      <p class="count" role="status" aria-live="polite">${this.summary()}</p>
      <div class="rows" @scroll=${(event) => this.scrolled(event.currentTarget)}>
        <table id="grid" tabindex="0" role="grid" aria-rowcount=${this.total + 1} aria-label="Features" aria-activedescendant=${`row-${this.cursor}`}>
          <thead><tr aria-rowindex="1">${this.around((name) => this.heading(name), html`<th scope="col" class="promoted">Promoted tokens</th>`)}</tr></thead>
          <tbody>
            <tr class="spacer" aria-hidden="true" .style=${`height:${first * ROW}px`}></tr>
            ${rows}
            <tr class="spacer" aria-hidden="true" .style=${`height:${(this.total - last) * ROW}px`}></tr>
          </tbody>
        </table>
        ${this.total || this.loading || this.error ? nothing : html`<p class="empty">No feature matches. <button @click=${() => go(CLEAR)}>Clear all filters</button></p>`}
      </div>
    </div>`;
  }

  summary() {
    if (this.error) return html`<span class="error">${this.error}</span>`;
    const all = this.total === this.of;
    return html`<b>${count(this.total)}</b> ${all ? "features" : html`of ${count(this.of)} features`}${this.loading ? " …" : ""}`;
  }

  heading(name) {
    const sorted = params().get("sort") || this.defaultSort;
    const colon = this.shareNames?.has(name) ? name.indexOf(":") : -1;
    const [prefix, rest] = colon > 0 ? [name.slice(0, colon), name.slice(colon + 1)] : name in FIXED ? ["", FIXED[name]] : known(name).heading;
    const down = sorted === `-${name}`, up = sorted === name;
    const label = html`${prefix ? html`<small>${prefix}</small>` : nothing}<bdi>${rest}</bdi><span class="arrow" aria-hidden="true">${down ? "▼" : up ? "▲" : ""}</span>`;
    const sortable = this.numeric?.has(name);
    return html`<th scope="col" class="${kind(name)} ${sortable ? "" : "text"}" title=${MEANING[name] ?? known(name).meaning} aria-sort=${down ? "descending" : up ? "ascending" : nothing}>
      ${sortable ? html`<button @click=${() => go({ sort: down || (!up && (name === "layer" || name === "feature")) ? name : `-${name}` })}>${label}</button>` : label}</th>`;
  }

  rowView(index) {
    const row = this.row(index);
    const open = opened();
    if (!row) return html`<tr class="waiting" aria-rowindex=${index + 2}><td colspan=${this.columns.length + 1}>…</td></tr>`;
    const [layer, feature] = row;
    const isOpen = open && open[0] === layer && open[1] === feature;
    const link = address({ feature: `${layer}.${feature}` });
    return html`<tr id=${`row-${index}`} aria-rowindex=${index + 2} aria-selected=${isOpen ? "true" : "false"}
        class="${isOpen ? "open " : ""}${index === this.cursor ? "cursor" : ""}" @click=${(event) => this.clicked(event, index)}>
      ${this.around((name, column) => this.cell(name, row[column], layer, link), html`<td class="promoted"><div>${row[row.length - 1].map(chip)}</div></td>`)}</tr>`;
  }

  // Cells of a row: the promoted tokens stand before the shares and the labels.
  around(cell, promoted) {
    const cells = this.columns.map(cell);
    cells.splice(Math.max(this.columns.indexOf("max"), this.columns.indexOf("class")) + 1, 0, promoted);
    return cells;
  }

  cell(name, value, layer, link) {
    if (name === "feature") return html`<td class="feature"><a href=${link} tabindex="-1"><span class="of-layer">${layer}.</span>${value}</a></td>`;
    if (name === "frequency") return html`<td class="number ${kind(name)}">${percent(value)}</td>`;
    if (this.shareNames?.has(name)) return html`<td class="share ${kind(name)}" .style=${`--v:${((value ?? 0) * 100).toFixed(1)}%`}>${percent(value)}</td>`;
    if (typeof value === "number") return html`<td class="number ${kind(name)}">${number(value)}</td>`;
    return html`<td class="label"><bdi title=${value ?? ""}>${value === null ? "" : parts(String(value))}</bdi></td>`;
  }

  clicked(event, index) {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    if (String(getSelection())) return;
    event.preventDefault();
    this.cursor = index;
    this.open(index);
  }

  open(index, replace = false) {
    const found = this.at(index);
    if (found) go({ feature: found.join(".") }, { replace });
  }
}

export const CLEAR = { layers: "", min_frequency: "", max_frequency: "", share: [], label: [], class: [], description: "", promoted: "", promoted_n: "", text: "", case: "", dead: "" };

const kind = (name) => `c-${name in FIXED ? name : "other"}`;
