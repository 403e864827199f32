// What gpt2 inspect shows by layer: the logit lens and the norms of the residual stream.

function lensOf(model) {
  const map = heatMap({
    label: `Loss by layer and token of ${model.name}`, largest: 24, height: () => 14, framed: true,
    pick: (row, column) => go({ place: column, layer: clamp(row - 1, 0, model.L - 1) }),
    describe: (row, column) => {
      const loss = lossAt(model, row, column);
      return `${rowName(row)}, ${wordAt(column)}` + (loss === null ? "" : `: probability ${percent(Math.exp(-loss))}`);
    },
  });
  const body = make("tbody");
  renders.push(() => {
    const layer = Math.min(state.layer, model.L - 1);
    const value = (row, column) => {
      const loss = lossAt(model, row, column);
      return loss === null ? null : 1 - loss / Math.log(model.V);
    };
    map.update({ rows: model.L + 1, columns: T, selected: [layer + 1, Math.min(state.place, T - 1)], value });
    body.replaceChildren(...lensRows(model, layer));
  });
  const head = make("tr", {}, make("th", {}, "after"), make("th", { class: "number" }, "actual token"),
    make("th", { colspan: 5 }, "likeliest"));
  const table = make("table", { class: "lens" }, make("thead", {}, head), body);
  const label = "Predictions by layer";
  return [map.node, make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table)];
}

function rowName(row) {
  return row ? `layer ${row}` : "embeddings";
}

function lensRows(model, layer) {
  const row = predictor(state.place);
  if (row === null) return [make("tr", {}, make("td", { colspan: 7 }, "Nothing predicts the first token."))];
  return model.guesses.map((guesses, l) => {
    const loss = lossAt(model, l, state.place);
    const cells = guesses[row].map((id, i) => {
      const p = model.probabilities[l][row][i];
      const kind = id === tokens[state.place] ? "guess actual" : "guess";
      const title = `${plain(labels[id])}: ${percent(p)}`;
      const cell = make("td", { class: kind, title }, ...shown(labels[id], true));
      tint(cell, 0.7 * p);
      return cell;
    });
    const choose = () => go({ layer: clamp(l - 1, 0, model.L - 1) });
    return make("tr", { class: l === layer + 1 ? "selected" : null, onclick: choose },
      make("th", { scope: "row" }, rowName(l)),
      make("td", { class: "number" }, loss === null ? "–" : percent(Math.exp(-loss))), ...cells);
  });
}

function normsOf(model) {
  const plot = chart(`Norms of the residual stream of ${model.name} by layer: arrow keys go from layer to layer`);
  const rows = model.norms.map((_, l) => l);
  const one = (t) => model.norms.map((row) => row[t]);
  const median = model.norms.map((row) => [...row].sort((a, b) => a - b)[row.length >> 1]);
  renders.push(() => {
    const query = Math.min(state.place, T - 1);
    plot.update({ x: "layer", whole: true, log: true, within: models.flatMap((each) => each.norms.flat()),
      at: Math.min(state.layer, model.L - 1) + 1, pick: (l) => go({ layer: Math.max(0, l - 1) }), series: [
        ...tokens.map((_, t) => ({ kind: "thin", xs: rows, ys: one(t) })),
        { name: "median", xs: rows, ys: median, colour: "--series-2" },
        { name: wordAt(query), xs: rows, ys: one(query), colour: "--series-1" },
      ] });
  });
  return [plot.node];
}
