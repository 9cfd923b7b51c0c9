"use strict";
// Shows what a client learned and taught while it is pointed at or has the keyboard's focus; of a
// matrix, whose cell is pointed at.
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
  drawing.querySelectorAll("rect.learned").forEach((cell) => {
    cell.addEventListener("pointerenter", () => {
      said.textContent = `client ${cell.dataset.to} from client ${cell.dataset.from}`;
    });
    cell.addEventListener("pointerleave", () => { said.textContent = nothing; });
  });
  clients.forEach((client) => {
    ["pointerenter", "focus"].forEach((event) => client.addEventListener(event, () => show(client)));
    ["pointerleave", "blur"].forEach((event) => client.addEventListener(event, () => show(null)));
  });
})();
