// Labels of features that a judge or a measurement gave, in plain words; others keep their column's name.
import { params } from "/static/state.js";

const TOLD = "share of texts of which its description tells rightly whether it is active in them";
const SHARED = "share of its active positions at which it would be active on the hidden states of the";
const LABELS = {
  class: { heading: ["", "Class"], words: "class", meaning: "what a judge sorted the feature into" },
  description: { heading: ["", "Description"], words: "description", meaning: "what a judge says the feature is about" },
  score_top: { heading: ["detection", "highest"], words: "detection, highest examples", meaning: `${TOLD}: texts of its highest examples, and others` },
  score_sampled: { heading: ["detection", "sampled"], words: "detection, sampled examples", meaning: `${TOLD}: texts of its sampled examples, and others` },
  overlap_target: { heading: ["overlap", "target"], words: "overlap, target", meaning: `${SHARED} target` },
  overlap_base: { heading: ["overlap", "base"], words: "overlap, base", meaning: `${SHARED} base` },
};

// A label's column as this page knows it, and the name that was given to it: `score_top_mine` is `score_top`, `mine`.
// Of other columns, `of` is empty.
export function label(column) {
  const of = Object.keys(LABELS).find((known) => column === known || column.startsWith(`${known}_`)) ?? "";
  if (!of) return { of, own: "", heading: ["", column], words: column, meaning: column };
  const { heading: [above, below], words, meaning } = LABELS[of];
  const own = column.slice(of.length + 1), named = (text) => (own ? `${text}, ${own}` : text);
  return { of, own, heading: [above, named(below)], words: named(words), meaning };
}

// The bounds of labels that the address has: [column, least, most] as texts, empty where there is none.
export function bounds(at = params()) {
  return at.getAll("label").map((text) => {
    const second = text.lastIndexOf(","), first = text.lastIndexOf(",", second - 1);
    return [text.slice(0, first), text.slice(first + 1, second), text.slice(second + 1)];
  });
}
