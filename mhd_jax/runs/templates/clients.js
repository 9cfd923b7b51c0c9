"use strict";
// Shows the client that a reader chooses.
(() => {
  const view = JSON.parse(document.getElementById("client-data").textContent);
  const chooser = document.getElementById("client");
  const output = document.getElementById("client-view");
  const SVG = "http://www.w3.org/2000/svg"; // a name, which nothing loads

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

  // An axis of accuracies begins at 0, or where they do if all are high.
  function beginning(curves) {
    const low = Math.min(...curves.flat().filter((accuracy) => accuracy !== null));
    return low > 0.5 ? Math.max(Math.floor((low - 0.01) * 20) / 20, 0) : 0;
  }

  // One line for each head, of accuracies over steps; an unknown one leaves a gap.
  function chart(label, curves) {
    const [width, height, left, right, top, bottom] = [400, 250, 52, 12, 24, 40];
    const [first, last] = [view.steps[0], view.steps[view.steps.length - 1]];
    const low = beginning(curves);
    const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
    const y = (accuracy) =>
      height - bottom - ((accuracy - low) / (1 - low)) * (height - top - bottom);
    const ends = view.heads.map((head, h) => `${head} ${shown(curves[h].at(-1))}`).join(", ");
    const svg = drawn("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${label} over steps; at the end ${ends}`,
    });
    svg.append(drawn("text", { x: left, y: 14, "font-weight": 600 }, label));
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      const accuracy = low + part * (1 - low);
      const line = { x1: left, x2: width - right, y1: y(accuracy), y2: y(accuracy) };
      svg.append(drawn("line", { ...line, stroke: part ? "#ddd" : "#555" }));
      const place = { x: left - 6, y: y(accuracy) + 4, "text-anchor": "end" };
      svg.append(drawn("text", place, String(Number(accuracy.toFixed(3)))));
    }
    if (view.chance > low) {
      const at = { x1: left, x2: width - right, y1: y(view.chance), y2: y(view.chance) };
      svg.append(drawn("line", { ...at, stroke: "#666", "stroke-dasharray": "6 3" }));
      const place = { x: width - right, y: y(view.chance) - 4, "text-anchor": "end", fill: "#595959" };
      svg.append(drawn("text", place, "chance"));
    }
    const ticks = new Map([[first, "start"], [(first + last) / 2, "middle"], [last, "end"]]);
    if (first === last) ticks.set(first, "middle");
    ticks.forEach((anchor, step) => {
      const place = { x: x(step), y: height - bottom + 16, "text-anchor": anchor };
      svg.append(drawn("text", place, Math.round(step).toLocaleString("en")));
    });
    const middle = (left + width - right) / 2;
    svg.append(drawn("text", { x: middle, y: height - 6, "text-anchor": "middle" }, "step"));
    curves.forEach((curve, h) => {
      let path = "";
      let pen = "M";
      curve.forEach((accuracy, i) => {
        if (accuracy === null) { pen = "M"; return; }
        path += `${pen}${x(view.steps[i]).toFixed(1)} ${y(accuracy).toFixed(1)}`;
        pen = "L";
      });
      const stroke = view.colours[h];
      svg.append(drawn("path", { d: path, stroke, fill: "none", "stroke-width": 2 }));
      const end = curve.at(-1);
      if (end !== null) svg.append(drawn("circle", { cx: x(last), cy: y(end), r: 3, fill: stroke }));
    });
    return svg;
  }

  function legend() {
    return element("ul", { class: "legend", "aria-label": "Heads" }, ...view.heads.map((head, h) =>
      element("li", {}, element("i", { style: `border-color: ${view.colours[h]}` }), head)));
  }

  function table(caption, headings, rows) {
    const cells = (row) => row.map((value, i) => {
      const tag = i ? "td" : "th";
      if (typeof value === "string") return element(tag, i ? {} : { scope: "row" }, value);
      const text = Number.isInteger(value) && i === 1 && caption.samples ? String(value) : shown(value);
      return element(tag, { class: "number", "data-value": value === null ? "" : value }, text);
    });
    const made = element("table", {},
      element("caption", {}, caption.text),
      element("thead", {}, element("tr", {},
        ...headings.map((heading, i) =>
          element("th", i ? { scope: "col", class: "number" } : { scope: "col" }, heading)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row)))));
    makeSortable(made);
    const box = { class: "scroll", tabindex: 0, role: "region", "aria-label": caption.text };
    return element("div", box, made);
  }

  // Classes of which a client has no samples, told by their mean and unfolded on demand.
  function folded(client, classes, byClass) {
    const means = view.heads.map((head, h) => {
      const known = classes.map((c) => client.by_class[h][c]).filter((x) => x !== null);
      const sum = known.reduce((a, b) => a + b, 0);
      return `${head} ${shown(known.length ? sum / known.length : null)}`;
    });
    const text = `${classes.length} classes without private samples`;
    return element("details", {},
      element("summary", {}, `${text}: mean test accuracy ${means.join(", ")}`),
      byClass(classes, `Client ${client.name}: ${text}`));
  }

  function show() {
    const client = view.clients[chooser.value];
    const facts = element("dl", {});
    Object.entries(client.facts).forEach(([name, value]) =>
      facts.append(element("dt", {}, name), element("dd", {}, value)));
    const metrics = Object.entries(view.metrics);
    const charts = metrics
      .filter(([metric]) => client.curves[metric].some((curve) => curve.some((x) => x !== null)))
      .map(([metric, label]) => chart(label, client.curves[metric]));
    const samples = client.samples !== null;
    const row = (c) => [
      view.classes[c], ...(samples ? [client.samples[c]] : []), ...client.by_class.map((of) => of[c])];
    const every = view.classes.map((_, c) => c);
    const folds = samples && every.length > view.most_classes;
    const first = folds ? every.filter((c) => client.samples[c] > 0) : every;
    const others = folds ? every.filter((c) => client.samples[c] === 0) : [];
    const byClass = (which, text) => table({ text, samples },
      ["class", ...(samples ? ["private samples"] : []), ...view.heads], which.map(row));
    output.replaceChildren(
      element("h3", {}, `Client ${client.name}`),
      facts,
      legend(),
      element("div", { class: "charts" }, ...charts),
      ...(charts.length < metrics.length
        ? [element("p", {}, "This client has no labels, and so no β_priv.")] : []),
      byClass(first, `Client ${client.name}: its data and its test accuracy on each class`),
      ...(others.length ? [folded(client, others, byClass)] : []),
    );
  }

  view.clients.forEach((client, i) => chooser.append(element("option", { value: i }, client.name)));
  chooser.addEventListener("change", show);
  show();
})();
