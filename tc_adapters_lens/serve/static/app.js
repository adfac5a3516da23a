// Puts the page together: address in, list and feature out; keys.
import { html, nothing, render } from "/lib/lit-html.js";
import { FeaturePanel } from "/static/feature.js";
import { filters, searchBox, summary } from "/static/filters.js";
import { List } from "/static/list.js";
import { ask, count, go, listing, opened, params } from "/static/state.js";

const MODELS = { replacement: "replacement model: adapter features", target: "target: MLP neurons", base: "base: MLP neurons" };
const KEYS = [
  ["/", "search in the examples’ text"],
  ["j  k  ↓  ↑", "next and previous feature"],
  ["Page Down  Page Up  Home  End", "move further in the list"],
  ["Enter", "open the feature"],
  ["Esc", "leave a field, close the feature"],
  ["t", "examples: highest or sampled"],
  ["f", "show or hide the filters, where there is no room for them"],
  ["?", "these keys"],
];

const root = document.getElementById("app");
root.replaceChildren();
let info = null, problem = "", queued = false, narrowFilters = false;
const list = new List(redraw);
const panel = new FeaturePanel(redraw);

function redraw() {
  if (queued) return;
  queued = true;
  queueMicrotask(() => {
    queued = false;
    draw();
  });
}

function draw() {
  if (!info) {
    render(problem ? html`<p class="error" role="alert">${problem}</p>` : html`<p class="loading">Reading features…</p>`, root);
    return;
  }
  const open = opened();
  document.title = open ? `${open.join(".")} · ${info.name}` : `Features · ${info.name}`;
  const asked = summary();
  render(html`<div class="page ${open ? "with-feature" : ""} ${narrowFilters ? "with-filters" : ""}">
    <header class="top">
      <h1><a href="/" @click=${home}><bdi>${info.name}</bdi></a></h1>
      ${chooser()}
      ${info.n_graphs ? html`<a class="graphs" href="/circuits/">${info.n_graphs === 1 ? "1 graph" : `${count(info.n_graphs)} graphs`}</a>` : nothing}
      ${searchBox()}
      <button class="toggle-filters" aria-expanded=${narrowFilters ? "true" : "false"} @click=${toggleFilters}>Filters</button>
      <button class="help" aria-label="Keys" title="Keys (?)" @click=${help}>?</button>
    </header>
    ${asked ? html`<p class="asked"><bdi>${asked}</bdi></p>` : nothing}
    <main>${filters(info, list)}${list.view()}${panel.view()}</main>
    <dialog aria-label="Keys"><h2>Keys</h2><dl>${KEYS.map(([key, does]) => html`<div><dt>${key.split("  ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${does}</dd></div>`)}</dl>
      <form method="dialog"><button>Close</button></form></dialog>
    <div class="tip" role="tooltip" hidden></div>
  </div>`, root);
}

function chooser() {
  const names = Object.keys(info.stores);
  if (names.length === 1) return html`<span class="store">${MODELS[info.stores[names[0]]]}</span>`;
  const chosen = params().get("store") || names[0];
  return html`<select class="store" aria-label="Whose features" @change=${(event) => go({ store: event.target.value === names[0] ? "" : event.target.value, feature: "", share: [], label: [], class: [], description: "", sort: "" })}>
    ${names.map((name) => html`<option value=${name} ?selected=${name === chosen}>${MODELS[info.stores[name]]}</option>`)}</select>`;
}

function home(event) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Object.fromEntries([...params().keys()].map((name) => [name, ""])));
}

function toggleFilters() {
  narrowFilters = !narrowFilters;
  redraw();
}

const help = () => document.querySelector("dialog").showModal();

// ---------------------------------------------------------------------------------------------- following the address

let readStore;

async function follow() {
  const store = params().get("store") ?? "";
  try {
    if (store !== readStore) {
      info = await ask(`/api/info?store=${encodeURIComponent(store)}`);
      readStore = store;
      list.defaultSort = info.default_sort;
      list.numeric = new Set(info.store.numeric);
      list.shareNames = new Set(info.store.shares.map(([name]) => name));
    }
  } catch (error) {
    [info, problem] = [null, error.message];
    return redraw();
  }
  redraw();
  await Promise.all([list.show(listing(), info.page), panel.show(opened(), info)]);
  const place = panel.data?.place;
  if (place && opened()) list.move(place.index);
}

addEventListener("addresschange", follow);
addEventListener("resize", () => {
  const pane = document.querySelector(".rows");
  if (pane) list.scrolled(pane);
});

// ------------------------------------------------------------------------------------------------------------- keys

const typing = (element) => element.matches?.("input:not([type=checkbox]):not([type=range]), textarea, select");

function step(by) {
  const place = opened() && panel.data?.place;
  const near = place && (by === 1 ? place.next : by === -1 ? place.previous : null);
  if (near) go({ feature: near.join(".") }, { replace: true });
  else if (!opened()) list.move(list.cursor + by);
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog")?.open) return;
  if (event.key === "Escape") return escape(event);
  if (typing(event.target)) {
    if (event.key === "Enter" && event.target.matches("input")) document.getElementById("grid")?.focus();
    return;
  }
  const onControl = event.target.closest?.("button, a, summary, input");
  const page = Math.max(1, Math.floor((document.querySelector(".rows")?.clientHeight ?? 600) / 30) - 3);
  const inPanel = event.target.closest?.(".panel");
  const actions = {
    "/": () => document.getElementById("f-text")?.select(),
    "?": help,
    j: () => step(1),
    k: () => step(-1),
    f: toggleFilters,
    t: () => opened() && go({ examples: params().get("examples") === "sampled" ? "" : "sampled" }, { replace: true }),
  };
  if (!inPanel) {
    Object.assign(actions, { ArrowDown: () => step(1), ArrowUp: () => step(-1) });
    Object.assign(actions, { PageDown: () => list.move(list.cursor + page), PageUp: () => list.move(list.cursor - page) });
    Object.assign(actions, { Home: () => list.move(0), End: () => list.move(list.total - 1) });
    if (!onControl) actions.Enter = () => list.open(list.cursor);
  }
  const action = actions[event.key];
  if (!action || (onControl?.matches("input") && event.key.length > 1)) return;
  event.preventDefault();
  if (event.key === "/") document.getElementById("f-text")?.focus();
  action();
}

function escape(event) {
  if (typing(event.target)) {
    event.target.blur();
    document.getElementById("grid")?.focus();
  } else if (opened()) {
    go({ feature: "" });
    document.getElementById("grid")?.focus();
  }
}

addEventListener("keydown", key);

// --------------------------------------------------------------------------------------------- a token's activation

addEventListener("pointerover", (event) => {
  const tip = document.querySelector(".tip"), token = event.target.closest?.(".t");
  if (!tip) return;
  tip.hidden = !token;
  if (!token) return;
  tip.textContent = `${Number(Number(token.dataset.activation).toPrecision(4))} at position ${count(Number(token.dataset.position))}`;
  const box = token.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.top > 40 ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
});

follow();
