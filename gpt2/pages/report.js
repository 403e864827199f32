// The page of gpt2 report.

const { curves, validation, norms, samples } = data;
const AXES = { steps: "step", tokens: "tokens", hours: "hours" };
const state = { axis: "steps", isLog: false };
const renders = [];

function go(changes) {
  Object.assign(state, changes);
  renders.forEach((render) => render());
}

function section(title, note, ...children) {
  return make("section", { "aria-label": title }, make("h2", {}, title),
    ...(note ? [make("p", { class: "note" }, note)] : []), ...children);
}

function plot(title, note, series, isLog = () => false) {
  const drawing = chart(`${title}: arrow keys go along the curve`);
  renders.push(() => {
    const axis = AXES[state.axis];
    drawing.update({ x: axis, log: isLog(), at: null,
      series: series.map((each) => ({ ...each, xs: each.of[axis] })).filter((each) => each.xs.length) });
  });
  return section(title, note, drawing.node);
}

function table(rows) {
  return make("table", { class: "facts" }, make("tbody", {}, ...rows.map(([name, text]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "text" }, ...shown(text))))));
}

function curve(name, key, property) {
  return { name, of: curves, ys: curves[key] || [], colour: property };
}

function averaged(text) {
  return curves.every > 1 ? `${text} Each point is the mean of ${number(curves.every)} steps.` : text;
}

function controls() {
  const box = make("input", { type: "checkbox", onchange: () => go({ isLog: box.checked }) });
  return make("div", {}, choices("Along", Object.keys(AXES), "steps", (axis) => go({ axis })),
    make("p", { class: "choices" }, make("label", {}, box, "logarithmic losses and norms")));
}

function normMaps() {
  const { steps, tensors } = norms;
  let low = Infinity, high = 0;
  for (const rows of Object.values(tensors)) {
    for (const row of rows) for (const x of row) if (x > 0) [low, high] = [Math.min(low, x), Math.max(high, x)];
  }
  const share = (x) => (x > 0 ? (high > low ? Math.log(x / low) / Math.log(high / low) : 1) : null);
  const maps = Object.entries(tensors).map(([name, rows]) => {
    const selected = [0, steps.length - 1];
    const layers = rows[0].length;
    const map = heatMap({
      label: `Gradient norms of ${name}: rows are layers, columns steps`, largest: 8, framed: true,
      height: () => (layers > 1 ? 8 : 16),
      pick: (layer, i) => update(layer, i),
      describe: (layer, i) =>
        `step ${number(steps[i])}${layers > 1 ? `, layer ${layer + 1}` : ""}: ${number(rows[i][layer])}`,
    });
    function update(layer, i) {
      selected.splice(0, 2, layer, i);
      map.update({ rows: layers, columns: steps.length, selected, value: (l, column) => share(rows[column][l]) });
    }
    renders.push(() => update(...selected));
    return make("div", {}, make("h3", {}, name), map.node);
  });
  const ramp = make("span", { class: "ramp blue" });
  return section("Gradient norms by tensor and layer",
    "A row for each layer, a column for each record, on a logarithmic scale.",
    make("p", { class: "legend" }, `${number(low)} `, ramp, ` ${number(high)}`),
    make("div", { class: "small" }, ...maps));
}

function sampleSection() {
  const text = make("pre", { class: "sample", "aria-live": "polite" });
  const output = make("output");
  const input = make("input", { type: "range", min: 0, max: samples.length - 1, value: samples.length - 1,
    "aria-label": "Sample", oninput: show });
  function show() {
    const [step, words] = samples[Number(input.value)];
    output.textContent = `after step ${number(step)}`;
    input.setAttribute("aria-valuetext", output.textContent);
    text.replaceChildren(...words.split("\n").flatMap((line, i) => [...(i ? ["\n"] : []), ...shown(line)]));
  }
  show();
  return section("Samples", "Text that the model generated as it learned.",
    make("label", { class: "note" }, output, input), text);
}

const isLog = () => state.isLog;
page.replaceChildren(
  make("header", {}, make("h1", {}, data.name), make("p", { class: "note" }, "A training run, as far as it had come.")),
  table(data.facts), controls(),
  plot("Loss", averaged("Cross-entropy in nats per token."), [
    curve("training", "train_loss", "--series-1"),
    { name: "validation", of: validation, ys: validation.val_loss, colour: "--series-2", kind: "dots" },
  ], isLog),
  make("div", { class: "panes" },
    plot("Gradient norm", averaged("Before clipping."), [curve("norm", "grad_norm", "--series-1")], isLog),
    plot("Learning rate", "", [curve("rate", "lr", "--series-1")]),
    plot("Speed", averaged("Tokens a second, validation and saving left out."), [
      curve("tokens a second", "tokens_per_s", "--series-1")]),
    plot("Time of a step", averaged("Milliseconds."), [
      curve("gradients", "gradients_ms", "--series-1"), curve("update", "update_ms", "--series-2")], isLog)),
  ...(norms.steps.length ? [normMaps()] : []),
  ...(samples.length ? [sampleSection()] : []),
  ...(data.options.length ? [make("details", {},
    make("summary", {}, `All ${data.options.length} options`), table(data.options))] : []));
go({});
