"use strict";
// Shows the differences to the baseline that a reader chooses.
(() => {
  const chooser = document.getElementById("baseline");
  if (!chooser) return;
  const all = document.querySelectorAll("[data-baseline]");
  const show = () => all.forEach((one) => { one.hidden = one.dataset.baseline !== chooser.value; });
  chooser.addEventListener("change", show);
  show(); // a browser may have kept an earlier choice
})();
