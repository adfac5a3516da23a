// The filters beside the list. Each writes the address; the list follows it.
import { html, nothing, svg } from "/lib/lit-html.js";
import { bounds, label } from "/static/labels.js";
import { debounce, go, params, percent } from "/static/state.js";
import { CLEAR } from "/static/list.js";

export const DEBOUNCE = 50; // milliseconds of quiet before what is typed is asked for

const typed = debounce((name, value) => go({ [name]: value.trim() === "" ? "" : value }, { typing: name }), DEBOUNCE);

function field(name, label, { hint = "", kind = "text", note = nothing } = {}) {
  return html`<label class="field"><span>${label}</span>
    <input id=${`f-${name}`} type=${kind} autocomplete="off" spellcheck="false" placeholder=${hint}
      .value=${keep(`f-${name}`, params().get(name) ?? "")} @input=${(event) => typed(name, event.target.value)}>${note}</label>`;
}

// A field that is being typed in keeps what it says.
function keep(id, value) {
  const focused = document.activeElement;
  return focused?.id === id && focused.value.trim() !== "" && value !== "" ? focused.value : value;
}

export function searchBox() {
  const at = params();
  return html`<form class="search" role="search" @submit=${(event) => event.preventDefault()}>
    <input id="f-text" type="search" aria-label="Search in the examples' text" placeholder="Search in the examples’ text" autocomplete="off"
      spellcheck="false" maxlength="1000" aria-keyshortcuts="/" .value=${keep("f-text", at.get("text") ?? "")}
      @input=${(event) => typed("text", event.target.value)}>
    <kbd aria-hidden="true">/</kbd>
  </form>`;
}

export function filters(info, list) {
  const at = params(), store = info.store;
  return html`<section class="filters" aria-label="Filters">
    ${field("promoted", "Promotes a token with", {
      hint: "wait",
      note: html`<span class="aside">among its first
        <select id="f-promoted_n" aria-label="How many promoted tokens are searched" @change=${(event) => go({ promoted_n: event.target.value === "20" ? "" : event.target.value })}>
          ${[1, 3, 5, 10, 20].map((n) => html`<option value=${n} ?selected=${String(n) === (at.get("promoted_n") || "20")}>${n}</option>`)}</select></span>`,
    })}
    ${field("layers", `Layers, 0 to ${store.n_layers - 1}`, { hint: "0-5,7" })}
    ${frequency(store, list)}
    ${shares(store)}
    ${labels(store)}
    ${store.described ? field("description", "Description has", { hint: "hesitation" }) : nothing}
    ${store.classes.length ? classes(store) : nothing}
    <div class="checks">
      ${check("case", "Tell A from a in searches")}
      ${check("dead", "Show dead features")}
    </div>
    ${[...at.keys()].some((name) => name in CLEAR) ? html`<button class="clear" @click=${() => go(CLEAR)}>Clear all filters</button>` : nothing}
  </section>`;
}

function check(name, label) {
  return html`<label class="check"><input type="checkbox" id=${`f-${name}`} .checked=${params().get(name) === "1"}
    @change=${(event) => go({ [name]: event.target.checked ? "1" : "" })}> ${label}</label>`;
}

function classes(store) {
  const chosen = params().getAll("class");
  const flip = (name, on) => go({ class: on ? [...chosen, name] : chosen.filter((other) => other !== name) });
  return html`<fieldset><legend>Class</legend>${store.classes.map((name) => html`<label class="check"><input type="checkbox" .checked=${chosen.includes(name)}
    @change=${(event) => flip(name, event.target.checked)}> <bdi>${name}</bdi></label>`)}</fieldset>`;
}

// ---------------------------------------------------------------------------------------------------- frequency

const WIDTH = 220, HEIGHT = 46;
let dragged = null;

function frequency(store, list) {
  const { first, per_decade: perDecade, counts } = store.histogram;
  const used = counts.map((n, bin) => (n ? bin : -1)).filter((bin) => bin >= 0);
  const from = used.length ? used[0] : 0, to = used.length ? used[used.length - 1] + 1 : counts.length;
  const step = WIDTH / (to - from), most = Math.max(1, ...counts);
  const height = (n) => (n ? Math.max(1.5, (HEIGHT - 2) * Math.sqrt(n / most)) : 0);
  const edge = (bin) => 10 ** (first + bin / perDecade);
  const binAt = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return Math.max(from, Math.min(to - 1, from + Math.floor(((event.clientX - box.left) / box.width) * (to - from))));
  };
  const choose = (a, b) => {
    const [low, high] = [Math.min(a, b), Math.max(a, b) + 1];
    go({ min_frequency: low <= from ? "" : edge(low).toPrecision(3), max_frequency: high >= to ? "" : edge(high).toPrecision(3) });
  };
  const bars = (values, of) => values.slice(from, to).map((n, index) => svg`<rect class=${of} x=${index * step + 0.5} width=${Math.max(1, step - 1)} y=${HEIGHT - height(n)} height=${height(n)}></rect>`);
  return html`<div class="field"><span id="frequency-label">Frequency</span>
    <svg class="frequencies" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label="Features by frequency, from ${percent(edge(from))} to ${percent(edge(to))}; drag to choose a range"
      @pointerdown=${(event) => { dragged = binAt(event); event.currentTarget.setPointerCapture(event.pointerId); }}
      @pointerup=${(event) => { if (dragged !== null) choose(dragged, binAt(event)); dragged = null; }}>
      ${bars(counts, "all")}${bars(list.histogram, "matched")}</svg>
    <div class="ends" aria-hidden="true"><span>${percent(edge(from))}</span><span>${percent(edge(to))}</span></div>
    <div class="range">${bound("min_frequency", "from")}${bound("max_frequency", "to")}</div></div>`;
}

// A frequency in percent, as the list shows it; in the address it is a share.
function bound(name, label) {
  const value = params().get(name);
  const shown = value && Number.isFinite(Number(value)) ? String(Number((Number(value) * 100).toPrecision(6))) : "";
  const asked = debounce((text) => {
    const share = Number(text.replace("%", "").trim()) / 100;
    if (text.trim() === "" || Number.isFinite(share)) go({ [name]: text.trim() === "" ? "" : String(Number(share.toPrecision(8))) }, { typing: name });
  }, DEBOUNCE);
  return html`<label><span>${label}</span><span class="unit"><input id=${`f-${name}`} inputmode="decimal" autocomplete="off" aria-label=${`frequency ${label}, in percent`}
    .value=${keep(`f-${name}`, shown)} @input=${(event) => asked(event.target.value)}>%</span></label>`;
}

// ------------------------------------------------------------------------------------------------------- shares

// A column of shares as a reader names it.
const words = (name) => (name === "top_template_share" ? "one template position, of the highest examples" : name.replace(":", ": "));

function shares(store) {
  if (!store.shares.length) return nothing;
  const chosen = params().getAll("share").map((text) => [text.slice(0, text.indexOf(",")), text.slice(text.indexOf(",") + 1)]);
  const set = (index, least, name) => {
    const next = chosen.map(([l, n]) => `${l},${n}`);
    if (name === null) next.splice(index, 1);
    else next[index] = `${least},${name}`;
    go({ share: next }, { typing: `share ${index} ${name}` });
  };
  const slide = debounce(set, DEBOUNCE);
  const free = store.shares.map(([name]) => name).filter((name) => !chosen.some(([, other]) => other === name));
  return html`<fieldset class="shares"><legend>Active mostly in</legend>
    ${chosen.map(([least, name], index) => html`<div class="chosen-share"><bdi>${words(name)}</bdi>
      <output>≥ ${percent(Number(least))}</output>
      <button class="remove" aria-label=${`Remove the filter on ${name}`} @click=${() => set(index, least, null)}>×</button>
      <input type="range" min="0" max="1" step="0.05" .value=${least} aria-label=${`least share in ${name}`}
        @input=${(event) => { event.target.parentElement.querySelector("output").textContent = `≥ ${percent(Number(event.target.value))}`; slide(index, event.target.value, name); }}></div>`)}
    <select id="f-share" aria-label="Add a region, group or position" .value=${""} @change=${(event) => { if (event.target.value) set(chosen.length, "0.5", event.target.value); event.target.value = ""; }}>
      <option value="">add a region or group</option>
      ${free.map((name) => html`<option value=${name}>${words(name)}</option>`)}</select></fieldset>`;
}

// ------------------------------------------------------------------------------------------------------- labels

function labels(store) {
  if (!store.scores.length) return nothing;
  const chosen = bounds();
  const set = (index, changed, typing) => {
    const next = chosen.map((one) => one.join(","));
    if (changed === null) next.splice(index, 1);
    else next[index] = changed.join(",");
    go({ label: next }, { typing });
  };
  const typed = debounce(set, DEBOUNCE);
  const end = (index, place, word) => {
    const id = `f-label-${index}-${place}`;
    return html`<label><span>${word}</span><input id=${id} inputmode="decimal" autocomplete="off" aria-label=${`${label(chosen[index][0]).words}, ${word}`}
      .value=${keep(id, chosen[index][place])} @input=${(event) => {
        const text = event.target.value.trim();
        if (text === "" || Number.isFinite(Number(text))) typed(index, chosen[index].with(place, text), id);
      }}></label>`;
  };
  const free = store.scores.filter((name) => !chosen.some(([other]) => other === name));
  return html`<fieldset class="shares labels"><legend>Judged or measured</legend>
    ${chosen.map(([name], index) => html`<div class="chosen-share"><bdi>${label(name).words}</bdi><span></span>
      <button class="remove" aria-label=${`Remove the filter on ${label(name).words}`} @click=${() => set(index, null)}>×</button>
      <div class="range">${end(index, 1, "from")}${end(index, 2, "to")}</div></div>`)}
    ${free.length ? html`<select id="f-label" aria-label="Add a label" .value=${""} @change=${(event) => { if (event.target.value) set(chosen.length, [event.target.value, "", ""]); event.target.value = ""; }}>
      <option value="">add a label</option>
      ${free.map((name) => html`<option value=${name}>${label(name).words}</option>`)}</select>` : nothing}</fieldset>`;
}

// What is asked for, in words: for where the filters themselves are out of sight.
export function summary() {
  const at = params(), said = [];
  if (at.get("promoted")) said.push(`promotes “${at.get("promoted")}”`);
  if (at.get("layers")) said.push(`layers ${at.get("layers")}`);
  if (at.get("min_frequency")) said.push(`frequency ≥ ${percent(Number(at.get("min_frequency")))}`);
  if (at.get("max_frequency")) said.push(`frequency ≤ ${percent(Number(at.get("max_frequency")))}`);
  for (const text of at.getAll("share")) said.push(`${words(text.slice(text.indexOf(",") + 1))} ≥ ${percent(Number(text.slice(0, text.indexOf(","))))}`);
  for (const [name, least, most] of bounds()) {
    const range = [least && `≥ ${least}`, most && `≤ ${most}`].filter(Boolean).join(", ");
    said.push(`${label(name).words} ${range || "known"}`);
  }
  if (at.get("description")) said.push(`described with “${at.get("description")}”`);
  for (const name of at.getAll("class")) said.push(name);
  return said.join(" · ");
}
