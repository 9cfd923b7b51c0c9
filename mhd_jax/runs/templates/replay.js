"use strict";
// One slider plays the training: curves, graph, class maps and lanes at the same evaluation.
(() => {
  const bar = document.getElementById("replay");
  if (!bar) return;
  const run = JSON.parse(document.getElementById("replay-data").textContent);
  const [slider, said, play] = ["replay-step", "replay-said", "replay-play"].map((id) => document.getElementById(id));
  const last = run.steps.length - 1;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const level = (text, i) => (text[i] === "." ? -1 : run.digits.indexOf(text[i]));
  const fill = (at) => (at < 0 ? run.unknown : run.colours[at]);
  const share = (at) => Math.max(at, 0) / (run.digits.length - 1);
  const graph = document.querySelector("svg.graph");
  const count = run.accuracy ? run.accuracy[0].length : 0;

  function showGraph(moment) {
    if (!graph) return;
    graph.querySelectorAll(".client").forEach((client) => {
      const at = level(run.accuracy[moment], Number(client.dataset.client));
      client.querySelector(".knows").setAttribute("fill", fill(at));
      client.querySelector(".number")?.setAttribute("fill", at < 0 ? "#000" : run.inks[at]);
    });
    if (!run.learned) return;
    graph.querySelectorAll(".learned").forEach((pair) => {
      const at = level(run.learned[moment], Number(pair.dataset.to) * count + Number(pair.dataset.from));
      const drawn = share(at) >= Number(graph.dataset.faintest) ? share(at) : 0;
      if (pair.tagName === "rect") pair.setAttribute("fill-opacity", drawn && 0.15 + 0.85 * drawn);
      else {
        pair.setAttribute("stroke-width", graph.dataset.widest * drawn);
        pair.setAttribute("stroke-opacity", 0.35 + 0.55 * drawn);
      }
    });
  }

  function showClasses(moment) {
    if (!run.classes) return;
    document.querySelectorAll("svg.class-map").forEach((map) => {
      const text = run.classes[map.dataset.head][moment];
      map.querySelectorAll(".cells rect").forEach((cell, i) =>
        cell.setAttribute("fill", fill(level(text, i))));
    });
  }

  function showLanes(step) {
    document.querySelectorAll("svg.lanes").forEach((lanes) => {
      const [from, to, end] = ["from", "to", "end"].map((name) => Number(lanes.dataset[name]));
      const cursor = lanes.querySelector(".cursor");
      ["x1", "x2"].forEach((end_) => cursor.setAttribute(end_, from + (step / end) * (to - from)));
      cursor.setAttribute("visibility", "visible");
    });
  }

  function show() {
    const moment = Number(slider.value);
    const step = run.steps[moment];
    const text = `step ${step.toLocaleString("en")} of ${run.steps[last].toLocaleString("en")}`;
    said.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    charts.ofPage.moveTo(step);
    showGraph(moment);
    showClasses(moment);
    showLanes(step);
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }
  function start() {
    if (Number(slider.value) === last) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      show();
      if (Number(slider.value) === last) stop();
      else slider.value = Number(slider.value) + 1;
    }, 180);
  }
  play.addEventListener("click", () => (timer === null ? start() : stop()));
  slider.addEventListener("input", () => { stop(); show(); });
  const honour = () => { play.hidden = still.matches; if (still.matches) stop(); };
  still.addEventListener("change", honour);
  honour();
  slider.max = last;
  slider.value = last; // a browser may have kept an earlier choice
  bar.hidden = false;
  said.textContent = `step ${run.steps[last].toLocaleString("en")} of ${run.steps[last].toLocaleString("en")}`;
})();
