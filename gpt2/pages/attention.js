// Attention probabilities, unpacked when first looked at, and the lines between words.

// A layer's probabilities: base64 of deflated bytes, the high and then the low ones of 65535ths; for each head the rows
// of the queries, up to the diagonal.
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = planes.length / 2;
  return Float32Array.from({ length: count }, (_, i) => (256 * planes[i] + planes[count + i]) / 65535);
}

// Returns a promise of a function p(query, key), for a head of a layer; the layer is kept for the other heads.
async function attentionOf(model, T, layer, head) {
  model.unpacked = model.unpacked || [];
  model.unpacked[layer] = model.unpacked[layer] || unpack(model.attention[layer]);
  const values = await model.unpacked[layer];
  const start = (head * T * (T + 1)) / 2;
  return (query, key) => (key > query ? 0 : values[start + (query * (query + 1)) / 2 + key]);
}

const ROW = 24;  // pixels of a word, as in page.css
const FAINTEST = 0.02;  // the least probability that has a line

// Two columns of the text's words, queries and keys, and lines from a query to the keys. words: strings.
// Returns {node, update(p, query, isAll)}; isAll: draw the other queries' lines, too.
function linesBetween(words, label, pick) {
  const column = (name) => words.map((word, i) => {
    const node = make("div", { class: "token", title: `token ${i + 1}`, onclick: () => pick(i) }, ...shown(word, true));
    node.classList.add(name);
    return node;
  });
  const from = column("from"), to = column("to");
  const svg = makeSvg("svg", { height: ROW * words.length, "aria-hidden": "true" });
  const columns = make("div", { class: "columns" },
    make("div", {}, ...from), make("div", {}, svg), make("div", {}, ...to));
  const node = make("div", { class: "lines", tabindex: 0, role: "application", "aria-label": label }, columns);
  let current = 0;

  node.addEventListener("keydown", (event) => {
    const move = { ArrowUp: -1, ArrowDown: 1, Home: -words.length, End: words.length }[event.key];
    if (!move) return;
    event.preventDefault();
    pick(clamp(current + move, 0, words.length - 1));
  });

  function line(query, key, p, isFaint) {
    return makeSvg("line", {
      class: isFaint ? "faint" : null, x1: "0%", x2: "100%", y1: ROW * (query + 0.5), y2: ROW * (key + 0.5),
      "stroke-width": isFaint ? 1 : 1 + 3 * p, "stroke-opacity": (isFaint ? 0.5 : 1) * Math.sqrt(p),
    });
  }

  return {
    node,
    update(p, query, isAll) {
      const hasMoved = query !== current;
      current = query;
      const lines = [];
      for (let q = 0; isAll && q < words.length; q++) {
        for (let k = 0; q !== query && k <= q; k++) if (p(q, k) > FAINTEST) lines.push(line(q, k, p(q, k), true));
      }
      for (let k = 0; k <= query; k++) if (p(query, k) > FAINTEST) lines.push(line(query, k, p(query, k), false));
      svg.replaceChildren(...lines);
      from.forEach((each, i) => each.classList.toggle("selected", i === query));
      to.forEach((each, i) => {
        tint(each, i <= query ? 0.85 * p(query, i) : 0);
        each.title = i <= query ? `${plain(words[i])}: ${percent(p(query, i))}` : "";
      });
      if (hasMoved) node.scrollTop = ROW * query - node.clientHeight / 2;
    },
  };
}
