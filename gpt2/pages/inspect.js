// The page of gpt2 inspect. A place is where a token stands; the last one, T, is what would come after the text.

const { tokens, labels, divided, models } = data;
const T = tokens.length;
const words = tokens.map((id) => labels[id]);
const layers = Math.max(...models.map((model) => model.L));
const heads = Math.max(...models.map((model) => model.NH));
const state = { place: Math.min(1, T - 1), layer: 0, head: 0, key: 0, isAll: false, isDifference: false };
const renders = [];  // called after each change of the state

// The length of the folders that all models' names begin with.
function sharedFolders() {
  const [first] = models.map((model) => model.name);
  let length = 0;
  for (let end = first.indexOf("/"); end >= 0; end = first.indexOf("/", end + 1)) {
    if (models.every((model) => model.name.startsWith(first.slice(0, end + 1)))) length = end + 1;
  }
  return length;
}

function go(changes) {
  Object.assign(state, changes);
  state.place = clamp(state.place, 0, T);
  state.layer = clamp(state.layer, 0, layers - 1);
  state.head = clamp(state.head, 0, heads - 1);
  const query = Math.min(state.place, T - 1);
  state.key = clamp("key" in changes ? state.key : query, 0, query);
  renders.forEach((render) => render());
}

function panes(build) {
  return make("div", { class: "panes" }, ...models.map((model) => make("div", { class: "pane" },
    ...(models.length > 1 ? [make("h3", {}, model.name.slice(sharedFolders()))] : []), ...build(model))));
}

function section(title, note, ...children) {
  return make("section", { "aria-label": title }, make("h2", {}, title), make("p", { class: "note" }, note),
    ...children);
}

function wordAt(place) {
  return place < T ? `“${plain(words[place])}”` : "what comes next";
}

// The row of an Anatomy that predicts a place, null for the first, which nothing precedes.
function predictor(place) {
  return place > 0 ? place - 1 : null;
}

function lossAt(model, layer, place) {
  return place > 0 && place < T ? model.losses[layer][place - 1] : null;
}

function header() {
  const facts = models.map((model) => {
    const { loss: mean } = model;
    const loss = mean === null ? "" : `, mean loss ${mean.toFixed(4)} nats (perplexity ${number(Math.exp(mean))})`;
    return make("p", {}, make("strong", {}, model.name),
      `: ${model.L} layers of ${model.NH} heads, ${number(model.parameters)} parameters${loss}`);
  });
  return make("header", {}, make("h1", {}, "What the model thinks"), ...facts,
    make("p", { class: "note" }, "Click a token, or use the arrow keys: ", make("kbd", {}, "←"), " ",
      make("kbd", {}, "→"), " go from token to token, ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"),
      " from layer to layer; with ", make("kbd", {}, "Shift"), " left and right go from head to head."));
}

// A slider; its value is shown as text(value).
function slider(name, key, top, offset, text) {
  const output = make("output", {});
  const input = make("input", { type: "range", min: offset, max: top + offset, "aria-label": name, oninput: () =>
    go({ [key]: Number(input.value) - offset }) });
  renders.push(() => {
    input.value = state[key] + offset;
    output.textContent = text(state[key]);
    input.setAttribute("aria-valuetext", output.textContent);
  });
  return make("label", {}, name, output, input);
}

function controls() {
  return make("div", { class: "controls", role: "group", "aria-label": "Selection" },
    slider("Token", "place", T, 1, (place) => (place < T ? `${place + 1} of ${T} ` : "") + wordAt(place)),
    slider("Layer", "layer", layers - 1, 1, (layer) => `${layer + 1} of ${layers}`),
    slider("Head", "head", heads - 1, 1, (head) => `${head + 1} of ${heads}`));
}

function describe(model, place) {
  const loss = lossAt(model, model.L, place);
  const part = divided[place] ? `, part of ${divided[place]}` : "";
  const value = loss === null ? "" : `, probability ${percent(Math.exp(-loss))}, loss ${loss.toFixed(2)}`;
  return `${wordAt(place)}${part}${value}`;
}

function textOf(model) {
  const chips = [];
  const other = models[1 - models.indexOf(model)];
  const prefix = `token-${models.indexOf(model)}-`;
  for (let place = 0; place <= T; place++) {
    chips.push(make("span", {
      class: place < T ? "token" : "token next", role: "option", id: prefix + place, title: describe(model, place),
      "aria-label": describe(model, place), onclick: () => go({ place }),
    }, ...(place < T ? shown(words[place]) : ["next"])));
  }
  const box = make("div", { class: "tokens", role: "listbox", tabindex: 0, "aria-label": `Text, read by ${model.name}`,
    "aria-orientation": "horizontal" });
  chips.forEach((chip, place) => {
    box.append(chip);
    if (place < T && words[place].endsWith("\n")) box.append(make("br"));
  });
  renders.push(() => {
    chips.forEach((chip, place) => {
      const loss = lossAt(model, model.L, place);
      const apart = state.isDifference && loss !== null ? loss - lossAt(other, other.L, place) : null;
      chip.classList.toggle("selected", place === state.place);
      chip.setAttribute("aria-selected", place === state.place);
      if (apart === null) tint(chip, loss === null ? 0 : loss / Math.log(model.V), "--high");
      else tint(chip, Math.abs(apart) / 3, apart > 0 ? "--high" : "--better");
    });
    box.setAttribute("aria-activedescendant", prefix + state.place);
  });
  return [box];
}

function textSection() {
  const legend = make("p", { class: "legend" });
  renders.push(() => {
    const kind = state.isDifference ? "ramp difference" : "ramp";
    const [low, high] = state.isDifference ? ["3 nats better than the other ", " 3 nats worse"]
      : ["certain ", ` ${number(Math.log(models[0].V))} nats, as likely as any other of ${number(models[0].V)} tokens`];
    legend.replaceChildren(low, make("span", { class: kind }), high);
  });
  const choice = models.length < 2 ? [] : [choices("Colour", ["loss", "difference"], "loss", (name) =>
    go({ isDifference: name === "difference" }))];
  return section("Text", "Each token is coloured by its loss: how surprised the model was to meet it there.",
    ...choice, panes(textOf), legend);
}

function guessRows(model, row, actual) {
  return model.guesses[model.L][row].map((id, i) => {
    const p = model.probabilities[model.L][row][i];
    const bar = make("span", { class: "bar" });
    bar.style.width = `${100 * p}%`;
    const word = make("span", { class: id === actual ? "text actual" : "text" }, ...shown(labels[id], true));
    return make("tr", {}, make("td", {}, word), make("td", { class: "number" }, percent(p)), make("td", {}, bar));
  });
}

function tokenOf(model) {
  const facts = make("p", { "aria-live": "polite" });
  const body = make("tbody");
  renders.push(() => {
    const { place } = state;
    const row = predictor(place);
    const loss = lossAt(model, model.L, place);
    const name = place < T
      ? [make("strong", { class: "text" }, "“", ...shown(words[place]), "”"), ` (id ${tokens[place]})`]
      : ["After the text"];
    if (divided[place]) name.push(`, part of ${divided[place]}`);
    if (row === null) name.push(": the first token, which nothing predicts");
    else if (loss !== null) {
      const rank = model.ranks[model.L][row];
      name.push(`: probability ${percent(Math.exp(-loss))}, loss ${loss.toFixed(4)} nats, `,
        rank ? `${number(rank)} ${rank > 1 ? "tokens are" : "token is"} likelier` : "the likeliest");
    }
    facts.replaceChildren(...name);
    body.replaceChildren(...(row === null ? [] : guessRows(model, row, tokens[place])));
  });
  return [facts, make("table", { class: "guesses", "aria-label": "The likeliest tokens at this place" }, body)];
}

function attentionPane(model) {
  const pickHead = (layer, head) => go({ layer, head });
  const grid = heatMap({
    label: `Heads of ${model.name}: arrow keys choose layer and head`, largest: 22, pick: pickHead, framed: true,
    describe: (layer, head) => `layer ${layer + 1}, head ${head + 1}: spread ${percent(model.spread[layer][head])}`,
  });
  let p = () => 0;
  const matrix = heatMap({
    label: `Attention matrix of ${model.name}: rows are tokens that look, columns those looked at`, framed: true,
    pick: (query, key) => go({ place: query, key: Math.min(key, query) }),
    describe: (query, key) => (key > query ? `${wordAt(query)} cannot look ahead to ${wordAt(key)}`
      : `${wordAt(query)} looks at ${wordAt(key)}: ${percent(p(query, key))}`),
  });
  const linesLabel = `Lines of attention of ${model.name}: up and down choose the token`;
  const lines = linesBetween(words, linesLabel, (place) => go({ place }));
  const title = make("h3");
  renders.push(async () => {
    const layer = Math.min(state.layer, model.L - 1), head = Math.min(state.head, model.NH - 1);
    const query = Math.min(state.place, T - 1), { key } = state;
    grid.update({ rows: model.L, columns: model.NH, selected: [layer, head], value: (l, h) => 1 - model.spread[l][h] });
    const found = await attentionOf(model, T, layer, head);
    if (layer !== Math.min(state.layer, model.L - 1) || head !== Math.min(state.head, model.NH - 1)) return;
    p = found;
    title.textContent = `Layer ${layer + 1}, head ${head + 1}`;
    const share = (q, k) => (k > q ? null : Math.sqrt(p(q, k)));
    matrix.update({ rows: T, columns: T, selected: [query, key], value: share });
    lines.update(p, query, state.isAll);
    matrix.node.dataset.shown = `${layer}.${head}`;
  });
  const note = "All heads, a row for each layer; the stronger the colour, the fewer tokens it looks at.";
  return [make("p", { class: "note" }, note), grid.node, title,
    make("div", { class: "beside" }, matrix.node, lines.node)];
}

function attentionSection() {
  const all = make("input", { type: "checkbox", onchange: () => go({ isAll: all.checked }) });
  return section("Attention",
    "How much each token takes from those before it: in the matrix a row for each token that looks, a column for " +
    "each that it looks at, coloured by the square root of the probability. Beside it the same as lines, from the token that looks to those it looks at.",
    make("p", { class: "choices" }, make("label", {}, all, "lines of all tokens")), panes(attentionPane));
}

// Arrow keys move through tokens, layers and heads wherever the focus has no keys of its own.
function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const isText = event.target.classList && event.target.classList.contains("tokens");
  if (!isText && event.target !== document.body) return;
  const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key], across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (along && event.shiftKey) go({ head: state.head + along });
  else if (along) go({ place: state.place + along });
  else if (across && isText) go({ layer: state.layer + across });
  else if (isText && event.key === "Home") go({ place: 0 });
  else if (isText && event.key === "End") go({ place: T });
  else return;
  event.preventDefault();
}

page.replaceChildren(
  header(), controls(), textSection(),
  section("Selected token", "What the model expected at the place of the selected token, before it saw it.",
    panes(tokenOf)),
  attentionSection(),
  section("Logit lens", "What each layer would predict: the residual stream after it, read through the final " +
    "layernorm and the output matrix. In the picture a row for each layer, coloured where the actual token is likely.",
    panes(lensOf)),
  section("Residual stream", "The length of each token's vector after each layer, on a logarithmic scale.",
    panes(normsOf)));
document.addEventListener("keydown", onKey);
go({});
