"use strict";
// Shows what a client learned and taught while it is pointed at or has the keyboard's focus.
(() => {
  const drawing = document.querySelector("svg.graph");
  const said = document.getElementById("graph-said");
  if (!drawing || !said) return;
  const nothing = said.textContent;
  const clients = drawing.querySelectorAll(".client");
  const show = (client) => {
    drawing.classList.toggle("chosen", client !== null);
    drawing.querySelectorAll(".learned").forEach((curve) => curve.classList.toggle("own",
      client !== null && [curve.dataset.from, curve.dataset.to].includes(client.dataset.client)));
    said.textContent = client === null ? nothing : client.getAttribute("aria-label");
  };
  clients.forEach((client) => {
    ["pointerenter", "focus"].forEach((event) => client.addEventListener(event, () => show(client)));
    ["pointerleave", "blur"].forEach((event) => client.addEventListener(event, () => show(null)));
  });
})();
