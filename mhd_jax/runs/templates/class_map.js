"use strict";
// Puts the clients of the class maps in the order that a reader chooses; the places stay.
(() => {
  const chooser = document.getElementById("class-order");
  const places = (map) => [...map.querySelectorAll(".row")];
  const maps = [...document.querySelectorAll("svg.class-map")].map((map) => ({
    rows: new Map(places(map).map((row) => [Number(row.dataset.client), row])),
    looks: places(map).map((row) => [row.getAttribute("transform"), row.getAttribute("class")]),
  }));
  const show = () => maps.forEach(({ rows, looks }) =>
    JSON.parse(chooser.value).forEach((client, place) => {
      const [transform, look] = looks[place];
      rows.get(client).setAttribute("transform", transform);
      rows.get(client).setAttribute("class", look);
    }));
  chooser.addEventListener("change", show);
  show(); // a browser may have kept an earlier choice
  document.getElementById("class-order-choice").hidden = false;
})();
