// The page's address is its whole state: filters, order, store and the open feature. This module reads and writes it.

const LISTING = ["store", "layers", "min_frequency", "max_frequency", "share", "label", "class", "description", "promoted", "promoted_n", "text",
  "case", "dead", "sort"];

export const params = () => new URLSearchParams(location.search);

// The part of the address that says which features are listed, as the server takes it.
export function listing(from = params()) {
  const kept = new URLSearchParams();
  for (const name of LISTING) for (const value of from.getAll(name)) if (value !== "") kept.append(name, value);
  return kept.toString();
}

// The open feature as [layer, feature], or null.
export function opened(from = params()) {
  const found = /^(\d{1,6})\.(\d{1,9})$/.exec(from.get("feature") ?? "");
  return found && [Number(found[1]), Number(found[2])];
}

// The address with changes: a value replaces, an array gives several, "" and null remove.
export function address(changes, from = params()) {
  const next = new URLSearchParams(from);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one !== null) next.append(name, one);
  }
  const text = next.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
  return text ? `/?${text}` : "/";
}

let lastChange = "";

// Goes to the address with changes. Typing on in one field makes one step of the history, not one per letter.
export function go(changes, { replace = false, typing = "" } = {}) {
  const next = address(changes);
  if (next === location.pathname + location.search) return;
  if (replace || (typing && typing === lastChange)) history.replaceState(null, "", next);
  else history.pushState(null, "", next);
  lastChange = typing;
  dispatchEvent(new Event("addresschange"));
}

addEventListener("popstate", () => {
  lastChange = "";
  if (document.activeElement?.matches("input")) document.activeElement.blur(); // or it would keep what was typed
  dispatchEvent(new Event("addresschange"));
});

// JSON from the server; an Error with the server's own line where it refuses.
export async function ask(path, signal) {
  let response;
  try {
    response = await fetch(path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Start it again: tc-adapters serve RUN");
  }
  const type = response.headers.get("content-type") ?? "";
  const answer = type.includes("json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(answer.error ?? `The server answers ${response.status}.`);
  return answer;
}

// A function that runs only once its caller has been quiet for that many milliseconds.
export function debounce(run, milliseconds) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), milliseconds);
  };
}

const plain = new Intl.NumberFormat("en-US");
export const count = (number) => plain.format(number);

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return size >= 1000 ? plain.format(Math.round(value)) : String(Number(value.toPrecision(3)));
}

// A share as percent, two significant digits where it is small.
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = share * 100;
  if (value === 0) return "0%";
  if (value < 1e-4) return `${value.toExponential(0)}%`;
  return `${value < 10 ? Number(value.toPrecision(2)) : Math.round(value)}%`;
}
