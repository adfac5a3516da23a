function escapeText(text) {
  const signs = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"};
  return text.replace(/[&<>"']/g, (sign) => signs[sign]);
}

// The feature in the address, now and when it changes. Runs after the dropdown is made.
window.addEventListener("load", () => {
  const select = document.getElementById("select-0");
  function show(feature) {
    const note = document.querySelectorAll("[data-feature]");
    note.forEach((line) => { line.hidden = line.dataset.feature !== feature; });
  }
  function follow() {
    const feature = window.location.hash.slice(1);
    if (select && [...select.options].some((option) => option.value === feature) && select.value !== feature) {
      select.value = feature;
      select.dispatchEvent(new Event("change"));
    }
    if (select) { show(select.value); }
  }
  if (select) {
    select.setAttribute("aria-label", "Feature");
    select.addEventListener("change", () => {
      show(select.value);
      window.history.replaceState(null, "", `#${select.value}`);
    });
  }
  window.addEventListener("hashchange", follow);
  follow();
});
