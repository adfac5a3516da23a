// Tokens as text to look at: every token is data, isolated from its neighbours' writing direction, with what would be
// invisible made visible.
import { html, nothing } from "/lib/lit-html.js";

const NAMES = { "\n": "↵", "\r": "CR", "\t": "⇥", "\u00a0": "⍽" };
const HIDDEN = /([\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}\u00a0\u115f\u1160\u3164\u2800])/u;

function visible(character) {
  if (NAMES[character]) return NAMES[character];
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// Parts of a text, hidden characters as marks. With `breaks` a line end also ends the line.
export function parts(text, breaks = false) {
  if (!HIDDEN.test(text)) return text;
  return text.split(HIDDEN).map((part, index) =>
    index % 2 ? html`<span class="hidden-character">${visible(part)}</span>${breaks && part === "\n" ? "\n" : nothing}` : part);
}

// One token by itself, blanks at its ends visible.
export function chip(text) {
  const [, front, middle, back] = /^( *)([^]*?)( *)$/.exec(text);
  const blanks = (some) => (some ? html`<span class="blank">${"·".repeat(some.length)}</span>` : nothing);
  return html`<bdi class="chip">${blanks(front)}${parts(middle, false)}${blanks(back)}</bdi>`;
}

// Which tokens an occurrence of the searched text touches.
export function searched(texts, search, matchCase) {
  const touched = new Set();
  if (!search) return touched;
  const fold = (text) => (matchCase ? text : text.replace(/[A-Z]/g, (letter) => letter.toLowerCase()));
  const whole = fold(texts.join("")), wanted = fold(search);
  const ends = [];
  texts.reduce((end, text) => (ends.push(end + text.length), end + text.length), 0);
  let token = 0;
  for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) {
    while (ends[token] <= at) token += 1;
    for (let other = token; other < ends.length && (other === token || ends[other - 1] < at + wanted.length); other += 1) {
      touched.add(other);
    }
  }
  return touched;
}

// An example's tokens, coloured by activation relative to `most`.
//   from, to: which of its tokens; hits: those to underline; context: texts [before, after] without activations.
export function passage(example, { from, to, most, breaks, hits, context }) {
  const around = (texts) => (texts?.length ? html`<span class="context">${texts.map((text) => html`<bdi>${parts(text, breaks)}</bdi>`)}</span>` : nothing);
  const token = (text, index) => {
    const activation = example.activations[index];
    const kind = `${index === example.peak ? "peak " : ""}${hits.has(index) ? "hit " : ""}${activation > 0 ? "on" : ""}`;
    return html`<bdi class="t ${kind}" .style=${activation > 0 ? `--a:${Math.min(1, activation / most).toFixed(3)}` : ""}
      data-activation=${activation} data-position=${example.start + index}>${parts(text, breaks)}</bdi>`;
  };
  return html`${around(context?.[0])}${example.texts.slice(from, to).map((text, index) => token(text, from + index))}${around(context?.[1])}`;
}
