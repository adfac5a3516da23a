"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { displayModeBar: false, responsive: true };
  // A finger scrolls the page; a mouse zooms the plot, and a double click resets it.
  const dragmode = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const shown = () => [...document.querySelectorAll("figure:not([hidden]) .plot")];

  // Names that a section's legend has switched off.
  const off = (section) =>
    new Set([...section.querySelectorAll('.keys [aria-pressed="false"]')].map((key) => key.dataset.key));

  const fit = (plot) => {
    const section = plot.closest("section");
    const hidden = off(section);
    const { data, layout } = figures[plot.dataset.figure];
    for (const trace of data) trace.visible = !hidden.has(trace.legendgroup);
    Plotly.react(plot, data, { ...layout, dragmode }, config);
  };

  for (const plot of shown()) fit(plot);

  for (const key of document.querySelectorAll(".keys button")) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", String(key.getAttribute("aria-pressed") === "false"));
      for (const plot of key.closest("section").querySelectorAll("figure:not([hidden]) .plot")) fit(plot);
    });
  }

  for (const select of document.querySelectorAll(".choose select")) {
    select.addEventListener("change", () => {
      const section = select.closest("section");
      for (const figure of section.querySelectorAll("figure[data-choice]")) {
        figure.hidden = figure.dataset.choice !== select.value;
        if (!figure.hidden) fit(figure.querySelector(".plot"));
      }
    });
  }

  window.addEventListener("beforeprint", () => {
    document.body.classList.add("printing");
    for (const plot of shown()) Plotly.relayout(plot, { width: plot.clientWidth, autosize: false });
  });
  window.addEventListener("afterprint", () => {
    document.body.classList.remove("printing");
    for (const plot of shown()) Plotly.relayout(plot, { width: null, autosize: true });
  });
})();
