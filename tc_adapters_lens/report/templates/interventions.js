(() => {
  // Draws of random features are folded into their mean; without scripts they all stand there.
  for (const button of document.querySelectorAll(".unfold")) {
    const draws = document.getElementById(button.getAttribute("aria-controls"));
    const fold = (folded) => {
      draws.hidden = folded;
      button.setAttribute("aria-expanded", String(!folded));
    };
    button.hidden = false;
    button.addEventListener("click", () => fold(!draws.hidden));
    fold(true);
  }

  const choices = document.querySelector(".choices");
  if (!choices) return;
  const at = (id) => document.getElementById(id);
  const problem = at("choose-problem");
  const put = (slot, id) => at(slot).replaceChildren((at(id) ?? at("missing")).content.cloneNode(true));
  const show = () => {
    put("question", `question-${problem.value}`);
    for (const side of ["left", "right"]) put(side, `s${problem.value}-${at(`choose-${side}`).value}`);
    at("previous").disabled = problem.selectedIndex === 0;
    at("next").disabled = problem.selectedIndex === problem.options.length - 1;
  };
  const step = (by) => () => {
    problem.selectedIndex += by;
    show();
  };
  choices.hidden = false;
  choices.addEventListener("change", show);
  at("previous").addEventListener("click", step(-1));
  at("next").addEventListener("click", step(1));
  show();
})();
