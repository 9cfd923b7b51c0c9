"use strict";
// Shows the client that a reader chooses.
(() => {
  const view = JSON.parse(document.getElementById("client-data").textContent);
  const chooser = document.getElementById("client");
  const output = document.getElementById("client-view");
  const { element, shown } = charts;

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

  const place = element("div");
  const curves = charts.draw(place, { ...view.charts, steps: view.steps, groups: view.clients.map(panelsOf) });

  function panelsOf(client) {
    const panels = Object.entries(view.metrics).map(([metric, label]) => ({ label, lines: client.curves[metric] }));
    return { name: client.name, panels };
  }

  function show() {
    const client = view.clients[chooser.value];
    const facts = element("dl", {});
    Object.entries(client.facts).forEach(([name, value]) =>
      facts.append(element("dt", {}, name), element("dd", {}, value)));
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
      place,
      ...(client.curves.beta_priv.flat().every((x) => x === null)
        ? [element("p", {}, "This client has no labels, and so no β_priv.")] : []),
      byClass(first, `Client ${client.name}: its data and its test accuracy on each class`),
      ...(others.length ? [folded(client, others, byClass)] : []),
    );
    curves.choose(chooser.value);
  }

  view.clients.forEach((client, i) => chooser.append(element("option", { value: i }, client.name)));
  chooser.addEventListener("change", show);
  show();
})();
