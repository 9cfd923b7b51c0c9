"use strict";
// Charts of numbers over steps, with one line each; unknown numbers leave gaps.
const charts = (() => {
  const SVG = "http://www.w3.org/2000/svg"; // a name, which nothing loads
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [400, 250, 52, 12, 24, 40];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  }

  function drawn(tag, attributes, text = "") {
    const made = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.textContent = text;
    return made;
  }

  const shown = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
  const known = (lines) => lines.flat().filter((value) => value !== null);

  // An axis of accuracies begins at 0, or where they do if all are high. Scores of numbers may be
  // below 0, down to -1 on the axis; what is lower lies on its edge.
  function ofAccuracies(lines) {
    const low = Math.min(...known(lines));
    if (low < 0) return [Math.max(Math.floor(low * 4) / 4, -1), 1];
    return [low > 0.5 ? Math.max(Math.floor((low - 0.01) * 20) / 20, 0) : 0, 1];
  }

  // An axis of losses begins at 0 and ends at two leading digits.
  function ofLosses(lines) {
    const high = Math.max(...known(lines), 1e-9);
    const unit = 10 ** (Math.floor(Math.log10(high)) - 1);
    return [0, Math.ceil(high / unit) * unit];
  }

  function path(steps, line, x, y) {
    return steps.map((step, i) => (line[i] === null ? "" :
      `${i && line[i - 1] !== null ? "L" : "M"}${x(step).toFixed(1)} ${y(line[i]).toFixed(1)}`)).join("");
  }

  // Draws a panel over `view`'s steps: accuracies of its heads in their colours, or the loss.
  // The drawing gets a function `moveTo(step)`, which puts a cursor at a step.
  function chart(view, { label, lines, ranges = [], isLoss = false }) {
    const names = isLoss ? [label] : view.heads;
    const colours = isLoss ? ["#555"] : view.colours;
    const every = [...lines, ...ranges.flat()];
    const [low, high] = isLoss ? ofLosses(every) : ofAccuracies(every);
    const [first, last] = [view.steps[0], view.steps[view.steps.length - 1]];
    const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
    const share = (value) => (Math.max(value, low) - low) / (high - low);
    const y = (value) => HEIGHT - BOTTOM - share(value) * (HEIGHT - TOP - BOTTOM);
    const ends = names.map((name, h) => `${name} ${shown(lines[h].at(-1))}`).join(", ");
    const svg = drawn("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `${label} over steps; at the end ${ends}`,
    });
    svg.append(drawn("text", { x: LEFT, y: 14, "font-weight": 600 }, label));
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      const value = low + part * (high - low);
      const line = { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) };
      svg.append(drawn("line", { ...line, stroke: part ? "#ddd" : "#555" }));
      const place = { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" };
      svg.append(drawn("text", place, String(Number(value.toPrecision(3)))));
    }
    if (!isLoss && view.chance !== null && view.chance > low) {
      const at = { x1: LEFT, x2: WIDTH - RIGHT, y1: y(view.chance), y2: y(view.chance) };
      svg.append(drawn("line", { ...at, stroke: "#666", "stroke-dasharray": "6 3" }));
      const place = { x: WIDTH - RIGHT, y: y(view.chance) - 4, "text-anchor": "end", fill: "#595959" };
      svg.append(drawn("text", place, "chance"));
    }
    const ticks = new Map([[first, "start"], [(first + last) / 2, "middle"], [last, "end"]]);
    if (first === last) ticks.set(first, "middle");
    ticks.forEach((anchor, step) => {
      const place = { x: x(step), y: HEIGHT - BOTTOM + 16, "text-anchor": anchor };
      svg.append(drawn("text", place, Math.round(step).toLocaleString("en")));
    });
    const middle = (LEFT + WIDTH - RIGHT) / 2;
    svg.append(drawn("text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, "step"));
    ranges.forEach(([lowest, highest], h) => {
      const there = path(view.steps, highest, x, y);
      const back = path([...view.steps].reverse(), [...lowest].reverse(), x, y).replace("M", "L");
      svg.append(drawn("path", { d: `${there}${back}Z`, fill: colours[h], opacity: 0.1 }));
    });
    lines.forEach((line, h) => {
      const d = path(view.steps, line, x, y);
      svg.append(drawn("path", { d, fill: "none", stroke: colours[h], "stroke-width": 1.8 }));
      const end = line.at(-1);
      if (end !== null) svg.append(drawn("circle", { cx: x(last), cy: y(end), r: 3, fill: colours[h] }));
    });
    const cursor = drawn("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
    svg.append(cursor);
    svg.moveTo = (step) => {
      cursor.setAttribute("x1", x(step));
      cursor.setAttribute("x2", x(step));
      cursor.setAttribute("visibility", "visible");
    };
    return svg;
  }

  function legend(view) {
    return element("ul", { class: "legend of-lines", "aria-label": "Heads" }, ...view.heads.map((head, h) =>
      element("li", {}, element("i", { style: `border-color: ${view.colours[h]}` }), head)));
  }

  return { element, shown, chart, legend };
})();

// Draws the numbers of all clients together, or of the group that a reader chooses, where a page has a
// place for them.
(() => {
  const place = document.getElementById("curves");
  if (!place) return;
  const { element } = charts;
  const view = JSON.parse(document.getElementById("curves-data").textContent);
  const panels = element("div", { class: "charts" });
  const chooser = element("select", { id: "curves-group" },
    ...view.groups.map((group, i) => element("option", { value: i }, group.name)));
  const show = () => panels.replaceChildren(
    ...view.groups[chooser.value].panels.map((panel) => charts.chart(view, panel)));
  chooser.addEventListener("change", show);
  show();
  const choice = element("p", {}, element("label", { for: "curves-group" }, "Curves of"), " ", chooser);
  place.replaceChildren(...(view.groups.length > 1 ? [choice] : []), charts.legend(view), panels);
})();
