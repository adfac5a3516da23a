// One feature: figures, promoted tokens, where it is active, and its examples.
import { html, nothing, svg } from "/lib/lit-html.js";
import { label } from "/static/labels.js";
import { address, ask, count, go, listing, number, params, percent } from "/static/state.js";
import { chip, parts, passage, searched } from "/static/tokens.js";

const SHORT = [24, 10]; // tokens before and after the peak until an example is opened
const AROUND = 1000; // further tokens on either side once it is
const FEW = 8; // promoted tokens until all are asked for
const PLACED = new Set(["class", "description"]); // labels with places of their own

export class FeaturePanel {
  constructor(redraw) {
    this.redraw = redraw;
    this.key = "";
    this.data = null;
    this.error = "";
    this.expanded = new Map();
    this.copied = false;
    this.allTokens = false;
  }

  async show(which, info) {
    const key = which ? `${which.join("/")}?${listing()}` : "";
    if (key === this.key) return;
    this.asked?.abort();
    this.asked = new AbortController();
    const same = this.data && which && this.data.layer === which[0] && this.data.feature === which[1];
    this.key = key;
    this.which = which;
    if (!which) {
      this.data = null;
      return;
    }
    if (!same) this.expanded.clear();
    try {
      this.data = await ask(`/api/feature/${key}`, this.asked.signal);
      this.error = "";
    } catch (error) {
      if (error.name === "AbortError") return;
      [this.data, this.error] = [null, error.message];
    }
    this.expected = new Map(info.store.shares);
    this.redraw();
    if (!same) document.querySelector(".panel")?.scrollTo(0, 0);
  }

  view() {
    if (!this.which) return nothing;
    const name = this.which.join(".");
    const data = this.data;
    return html`<section class="panel ${data && data.layer === this.which[0] && data.feature === this.which[1] ? "" : "stale"}" aria-label=${`Feature ${name}`}>
      ${this.bar(data?.place)}
      ${this.error ? html`<p class="error" role="alert">${this.error}</p>` : data ? this.body(data) : html`<p class="loading">…</p>`}
    </section>`;
  }

  bar(place) {
    const step = (to, label, sign, key) => html`<a class="button ${to ? "" : "off"}" href=${to ? address({ feature: to.join(".") }) : nothing} aria-disabled=${to ? "false" : "true"}
      aria-label=${label} title=${`${label} (${key})`} @click=${(event) => { event.preventDefault(); if (to) go({ feature: to.join(".") }, { replace: true }); }}>${sign}</a>`;
    return html`<nav class="bar" aria-label="Features of the list">
      ${step(place?.previous, "Previous feature", "‹", "k")}${step(place?.next, "Next feature", "›", "j")}
      <span class="place">${place ? html`${count(place.index + 1)} of ${count(place.total)}` : this.data ? "not in this list" : ""}</span>
      <button @click=${() => this.copy()}>${this.copied ? "Copied" : "Copy link"}</button>
      <button class="close" aria-label="Close the feature" title="Close (Esc)" @click=${() => go({ feature: "" })}>×</button>
    </nav>`;
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      prompt("The link:", location.href);
      return;
    }
    this.copied = true;
    this.redraw();
    setTimeout(() => { this.copied = false; this.redraw(); }, 1500);
  }

  body(data) {
    const labels = Object.entries(data.labels).map(([column, value]) => ({ ...label(column), value }));
    const isPlaced = ({ of, value }) => PLACED.has(of) && typeof value === "string";
    const placed = (which) => labels.filter((one) => one.of === which && isPlaced(one));
    const written = ({ of, value }) => (typeof value !== "number" ? parts(String(value)) : of ? value.toFixed(2) : number(value));
    return html`<header>
        <h2 tabindex="-1">Layer ${data.layer}, feature ${data.feature}</h2>
        ${placed("class").map(({ value, own }) => html`<bdi class="class">${own ? `${own}: ` : ""}${parts(value)}</bdi>`)}
        ${placed("description").map(({ value, own }) => html`<p class="description"><bdi>${own ? `${own}: ` : ""}${parts(value)}</bdi></p>`)}
        <dl class="figures">
          ${figure("Frequency", percent(data.frequency))}${figure("Active positions", count(data.n_active))}
          ${data.n_active ? html`${figure("Mean", number(data.mean))}${figure("Max", number(data.max))}` : nothing}
          ${labels.filter((one) => !isPlaced(one)).map((one) => figure(one.words, written(one), one.meaning))}
        </dl>
        ${this.links(data)}
      </header>
      ${data.n_active ? nothing : html`<p class="dead">Dead: this feature was never active on the held-out text.</p>`}
      ${data.n_active ? html`<div class="columns where">
        ${histogram(data.histogram)}
        ${this.bars("Regions", "region", data.regions)}${this.bars(data.group_by, data.group_by, data.groups)}${this.bars("Template positions", "template", data.template)}
      </div>` : nothing}
      <div class="columns tokens">${this.effects("Promoted tokens", "promoted", data.promoted)}${this.effects("Inhibited tokens", "inhibited", data.inhibited)}</div>
      ${data.n_active ? this.examples(data) : nothing}`;
  }

  effects(title, kind, list) {
    const most = Math.max(...list.map((one) => Math.abs(one.effect)), 1e-12);
    const shown = this.allTokens ? list : list.slice(0, FEW);
    const flip = () => { this.allTokens = !this.allTokens; this.redraw(); };
    return html`<div class="effects ${kind}"><h3>${title}</h3><table><tbody>${shown.map((one) => html`<tr title=${`token ${one.token}`}>
      <td>${chip(one.text)}</td><td class="bar"><span .style=${`width:${((100 * Math.abs(one.effect)) / most).toFixed(1)}%`}></span></td><td class="number">${number(one.effect)}</td></tr>`)}</tbody></table>
      ${list.length > FEW ? html`<button class="more" aria-expanded=${this.allTokens ? "true" : "false"} @click=${flip}>${this.allTokens ? `First ${FEW}` : `All ${list.length}`}</button>` : nothing}</div>`;
  }

  links(data) {
    if (!data.dashboard && !data.graphs.length) return nothing;
    return html`<p class="links">
      ${data.dashboard ? html`<a href=${data.dashboard} target="_blank" rel="noopener">Dashboard</a>` : nothing}
      ${data.graphs.map((graph) => html`<a href=${graph.address} target="_blank" rel="noopener" title=${graph.prompt}>Graph <bdi>${graph.slug || graph.address}</bdi></a>`)}</p>`;
  }

  // Shares of active positions, largest first where there are many; a tick marks the share of all positions.
  bars(title, prefix, shares) {
    if (!shares.length) return nothing;
    const many = shares.length > 6;
    const kept = many ? shares.filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]).slice(0, 8) : shares;
    return html`<div class="bars"><h3><bdi>${title}</bdi></h3><table>${kept.map(([name, share]) => {
      const usual = this.expected?.get(`${prefix}:${name}`) ?? 0;
      return html`<tr title=${`${percent(share)} of its active positions; ${percent(usual)} of all`}><th scope="row"><bdi>${name}</bdi></th>
        <td class="bar"><span .style=${`width:${(share * 100).toFixed(1)}%`}></span><i .style=${`left:${(usual * 100).toFixed(1)}%`}></i></td><td class="number">${percent(share)}</td></tr>`;
    })}</table></div>`;
  }

  examples(data) {
    const tab = params().get("examples") === "sampled" ? "sampled" : "top";
    const shown = data[tab];
    const search = params().get("text") ?? "";
    const found = new Map([...data.top, ...data.sampled].map((one) => [one, searched(one.texts, search, params().get("case") === "1")]));
    const tally = (of) => (search ? `${of.filter((one) => found.get(one).size).length} of ${of.length}` : of.length);
    const names = { top: `Highest (${tally(data.top)})`, sampled: `Sampled (${tally(data.sampled)})` };
    const move = (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      event.stopPropagation();
      go({ examples: tab === "top" ? "sampled" : "" }, { replace: true });
      document.getElementById(`tab-${tab === "top" ? "sampled" : "top"}`)?.focus();
    };
    return html`<div class="examples">
      <div class="tabs"><h3 id="examples-title">Examples</h3><div role="tablist" aria-labelledby="examples-title" @keydown=${move}>
        ${["top", "sampled"].map((name) => html`<button role="tab" id=${`tab-${name}`} aria-selected=${tab === name ? "true" : "false"} aria-controls="tabpanel" tabindex=${tab === name ? "0" : "-1"}
          title=${name === "top" ? "Highest activations first" : "Drawn uniformly from all active positions"} @click=${() => go({ examples: name === "top" ? "" : name }, { replace: true })}>${names[name]}</button>`)}</div>
        <span class="scale" aria-hidden="true">0 <i></i> ${number(data.max)}</span></div>
      <ol id="tabpanel" role="tabpanel" aria-labelledby=${`tab-${tab}`}>${shown.map((example, index) => this.example(example, `${tab}${index}`, data.max, found.get(example)))}</ol></div>`;
  }

  example(example, key, most, hits) {
    const context = this.expanded.get(key);
    const short = context === undefined;
    const near = [example.peak - SHORT[0], example.peak + SHORT[1], ...hits]; // what was searched for is in view
    const [from, to] = short ? [Math.max(0, Math.min(...near)), Math.max(...near) + 1] : [0, example.texts.length];
    return html`<li class=${hits.size ? "found" : ""}>
      <div class="about"><b>${number(example.activation)}</b>
        <span>sequence ${count(example.sequence)}, position ${count(example.position)} of ${count(example.length)}</span>
        ${[example.group, example.region, example.template].map(label => label ? html`<bdi class="group">${label}</bdi>` : nothing)}
        <button aria-expanded=${short ? "false" : "true"} @click=${() => this.expand(example, key)}>${short ? "More context" : "Less"}</button></div>
      <p class="passage ${short ? "short" : ""}" dir="ltr">${passage(example, {
        from, to, most, breaks: !short, hits, context,
      })}</p></li>`;
  }

  // Opens the stored window at once, then the text around it, which has no activations.
  async expand(example, key) {
    if (this.expanded.has(key)) {
      this.expanded.delete(key);
      return this.redraw();
    }
    this.expanded.set(key, null);
    this.redraw();
    const stop = example.start + example.texts.length;
    const store = params().get("store");
    const part = (from, to) => ask(`/api/context?sequence=${example.sequence}&start=${from}&stop=${to}${store ? `&store=${encodeURIComponent(store)}` : ""}`);
    const [before, after] = await Promise.all([part(Math.max(0, example.start - AROUND), example.start), part(stop, stop + AROUND)]);
    if (this.expanded.has(key)) this.expanded.set(key, [before.texts, after.texts]);
    this.redraw();
  }
}

const figure = (name, value, meaning = "") => html`<div title=${meaning || nothing}><dt><bdi>${name}</bdi></dt><dd><bdi>${value}</bdi></dd></div>`;

// Positions by activation; bins are as wide as the store's, which are even on a log scale.
function histogram({ counts, edges }) {
  const first = counts.findIndex((n) => n > 0), last = counts.findLastIndex((n) => n > 0);
  if (first < 0) return nothing;
  const from = Math.max(0, first - 1), to = Math.min(counts.length, last + 2);
  const width = 260, height = 64, step = width / (to - from), most = Math.max(...counts);
  return html`<div class="histogram"><h3>Activations</h3>
    <svg viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${`Positions by activation, from ${number(edges[first])} to ${number(edges[last + 1])}`}>
      ${counts.slice(from, to).map((n, index) => {
        const tall = n ? Math.max(1.5, (height - 4) * (n / most)) : 0;
        return svg`<rect x=${index * step + 0.5} width=${Math.max(1, step - 1)} y=${height - tall} height=${tall}><title>${number(edges[from + index])} to ${number(edges[from + index + 1])}: ${count(n)}</title></rect>`;
      })}<line x1="0" x2=${width} y1=${height} y2=${height}></line></svg>
    <div class="ends" aria-hidden="true"><span>${number(edges[from])}</span><span>log scale</span><span>${number(edges[to])}</span></div></div>`;
}
