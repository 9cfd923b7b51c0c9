"use strict";
// Charts of lines, drawn by Vega-Lite from specifications that the page holds; see `vega.py`.
const charts = (() => {
  const MARKED = 12; // points of a line that have a marker

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  }

  const shown = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
  const namesOf = (view, panel) => (panel.isLoss ? [panel.label] : view.names);
  const isKnown = (panel) => panel.lines.some((line) => line.some((value) => value !== null));

  // The rows of a panel's lines that are not hidden.
  function rowsOf(view, panel, hidden) {
    return namesOf(view, panel).flatMap((series, h) => {
      const line = hidden.has(series) ? [] : panel.lines[h];
      const [lows, highs] = panel.ranges?.[h] ?? [[], []];
      const every = Math.ceil(line.length / MARKED);
      return line.map((y, i) => {
        const [low, high] = [lows[i] ?? null, highs[i] ?? null];
        const range = low === null ? "–" : `${shown(low)} to ${shown(high)}`;
        const marked = (line.length - 1 - i) % every === 0;
        return { series, x: (panel.at?.[h] ?? view.steps)[i], y, low, high, range, marked };
      });
    });
  }

  function inWords(view, panel) {
    const ends = namesOf(view, panel).map((name, h) => `${name} ${shown(panel.lines[h].at(-1) ?? null)}`);
    return `${panel.label} over ${panel.over ?? "steps"}; at the end ${ends.join(", ")}`;
  }

  // Buttons of the lines' names, which hide and show a line.
  function legend(view, hidden, refresh) {
    const buttons = view.names.map((name, h) => {
      const glyph = element("i", { style: `color: ${view.colours[h]}`, "aria-hidden": true }, view.glyphs[h]);
      const button = element("button", { type: "button", "aria-pressed": true }, glyph, name);
      button.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        button.setAttribute("aria-pressed", !hidden.has(name));
        refresh();
      });
      return element("li", {}, button);
    });
    return element("ul", { class: "legend of-lines", "aria-label": "Lines; each button hides or shows one" }, ...buttons);
  }

  // Draws a view's panels in a place: `choose(i)` shows its group i, `moveTo(x)` puts cursors at x.
  function draw(place, view) {
    const hidden = new Set();
    let group = view.groups[0];
    const boxes = view.specs.map(() => element("div", { class: "chart", role: "img" }, element("div")));
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false };
    const drawn = view.specs.map(() => null);
    function refresh() {
      boxes.forEach((box, i) => {
        const panel = group.panels[i];
        box.hidden = panel === undefined || !isKnown(panel);
        if (box.hidden) return;
        box.setAttribute("aria-label", inWords(view, panel));
        drawn[i] ??= vegaEmbed(box.firstChild, view.specs[i], options);
        drawn[i].then((made) => made.view.data("rows", rowsOf(view, group.panels[i], hidden)).resize().run());
      });
    }
    const move = (x) => drawn.forEach((one) => one?.then(({ view: made }) => made.signal("moment", x).run()));
    place.replaceChildren(legend(view, hidden, refresh), element("div", { class: "charts" }, ...boxes));
    refresh();
    return { drawn, moveTo: move, choose: (i) => { group = view.groups[i]; refresh(); } };
  }

  // Those of the page, of all clients or seeds together or of the group that a reader chooses.
  const place = document.getElementById("curves");
  const data = document.getElementById("curves-data");
  let ofPage = null;
  if (place && data) {
    const view = JSON.parse(data.textContent);
    const inner = element("div");
    const chooser = element("select", { id: "curves-group" },
      ...view.groups.map(({ name }, i) => element("option", { value: i }, name)));
    const choice = element("p", {}, element("label", { for: "curves-group" }, "Curves of"), " ", chooser);
    place.replaceChildren(...(view.groups.length > 1 ? [choice] : []), inner);
    ofPage = draw(inner, view);
    chooser.addEventListener("change", () => ofPage.choose(chooser.value));
  }
  return { element, shown, draw, ofPage };
})();
