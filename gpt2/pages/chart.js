// Curves over one axis as SVG; a crosshair follows the pointer and the arrow keys.

const LEFT = 58, RIGHT = 12, TOP = 8, BOTTOM = 40, TALL = 280;

// Round numbers from low to high, about `count` of them; on a log axis powers of ten, or 1, 2 and 5 times them.
function ticks(low, high, count, isLog) {
  if (isLog) {
    const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const factors = to - from <= 2 ? [1, 2, 3, 5, 7] : [1];
    const stride = Math.max(1, Math.ceil((to - from) / count));
    const found = [];
    for (let e = from; e <= to; e += stride) found.push(...factors.map((f) => f * 10 ** e));
    const inside = found.filter((x) => x >= low * 0.999 && x <= high * 1.001);
    return inside.length > 1 ? inside : [low, high];
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

// The range of finite values, positive ones alone for a log axis, never empty.
function range(lists, isLog) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) {
    for (const x of list) {
      if (x === null || !Number.isFinite(x) || (isLog && x <= 0)) continue;
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
  }
  if (low > high) return isLog ? [1, 10] : [0, 1];
  if (low === high && isLog) return [low / 2, high * 2];
  if (low === high) return [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  return isLog ? [low * (low / high) ** 0.04, high * (high / low) ** 0.04] : [low, high + 0.04 * (high - low)];
}

// label: what a screen reader says. Returns {node, update(options)}; options: {x: what the x axis is called, whole:
// whether only integers are marked on it, log: whether y is logarithmic, series: [{name, xs, ys, kind: "curve", "dots"
// or "thin", colour: its property}], within: further values that the y axis spans, at: an x to mark, pick(x): called
// where the crosshair is put}.
function chart(label) {
  const svg = makeSvg("svg", { tabindex: 0, role: "application", "aria-label": label, height: TALL });
  const readout = readoutOf(svg);
  const legend = make("div", { class: "legend" });
  const node = make("figure", { class: "chart" }, legend, svg, readout);
  let options = null, cross = null, stops = [], scale = null;

  function draw(width) {
    if (!options) return;
    const { series, log: isLog } = options;
    const xs = range(series.map((each) => each.xs), false);
    const right = Math.max(...series.flatMap((each) => (each.xs.length ? [each.xs[each.xs.length - 1]] : [])), xs[0]);
    const ys = range([...series.map((each) => each.ys), options.within || []], isLog);
    const [w, h] = [width - LEFT - RIGHT, TALL - TOP - BOTTOM];
    const along = (y) => (isLog ? Math.log(y / ys[0]) / Math.log(ys[1] / ys[0]) : (y - ys[0]) / (ys[1] - ys[0]));
    const span = (right > xs[0] ? right : xs[1]) - xs[0];
    scale = { x: (x) => LEFT + (w * (x - xs[0])) / span, y: (y) => TOP + h * (1 - along(y)), left: xs[0], span, w };
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${TALL}`);
    axes(xs[0], xs[0] + span, ys, w, h);
    series.forEach((each) => svg.append(...drawn(each, isLog)));
    stops = [...new Set(series.flatMap((each) => Array.from(each.xs)))].sort((a, b) => a - b);
    mark(cross);
  }

  function axes(left, right, ys, w, h) {
    for (const y of ticks(ys[0], ys[1], 5, options.log)) {
      svg.append(makeSvg("line", { class: "grid", x1: LEFT, x2: LEFT + w, y1: scale.y(y), y2: scale.y(y) }));
      svg.append(makeSvg("text", { x: LEFT - 6, y: scale.y(y) + 4, "text-anchor": "end" }, number(y)));
    }
    for (const x of ticks(left, right, Math.max(2, Math.floor(w / 90)), false)) {
      if (options.whole && !Number.isInteger(x)) continue;
      svg.append(makeSvg("line", { class: "grid", x1: scale.x(x), x2: scale.x(x), y1: TOP + h, y2: TOP + h + 4 }));
      svg.append(makeSvg("text", { x: scale.x(x), y: TOP + h + 18, "text-anchor": "middle" }, number(x)));
    }
    svg.append(makeSvg("text", { x: LEFT + w, y: TALL - 4, "text-anchor": "end" }, options.x));
    svg.append(makeSvg("line", { class: "grid", x1: LEFT, x2: LEFT + w, y1: TOP + h, y2: TOP + h }));
  }

  function drawn({ xs, ys, kind = "curve", colour: property }, isLog) {
    const seen = (y) => y !== null && Number.isFinite(y) && !(isLog && y <= 0);
    const stroke = `stroke: var(${property})`;
    let path = "", isOpen = false;
    ys.forEach((y, i) => {
      if (seen(y)) path += `${isOpen ? "L" : "M"}${scale.x(xs[i]).toFixed(1)} ${scale.y(y).toFixed(1)}`;
      isOpen = seen(y) || (kind === "dots" && isOpen);
    });
    const nodes = [makeSvg("path", { class: `curve ${kind}`, d: path, style: kind === "thin" ? null : stroke })];
    if (kind === "dots" || ys.length === 1) {
      ys.forEach((y, i) => seen(y) && nodes.push(makeSvg("circle", {
        cx: scale.x(xs[i]), cy: scale.y(y), r: 3, style: `fill: var(${property})`,
      })));
    }
    return nodes;
  }

  function mark(x) {
    svg.querySelectorAll(".cross").forEach((line) => line.remove());
    cross = x;
    if (x === null || !scale) return void (readout.textContent = "");
    const place = scale.x(x);
    svg.append(makeSvg("line", { class: "cross", x1: place, x2: place, y1: TOP, y2: TALL - BOTTOM }));
    const values = options.series.filter((each) => each.name && each.xs.length).map((each) => {
      const i = nearest(each.xs, x);
      return each.xs[i] === x || each.kind !== "dots" ? `${each.name} ${number(each.ys[i])}` : null;
    });
    readout.textContent = [`${options.x} ${number(x)}`, ...values.filter(Boolean)].join(" · ");
  }

  function go(x) {
    mark(x);
    if (options.pick) options.pick(x);
  }

  svg.addEventListener("pointermove", (event) => {
    if (!scale || !stops.length) return;
    const offset = event.clientX - svg.getBoundingClientRect().left;
    mark(stops[nearest(stops, scale.left + ((offset - LEFT) / scale.w) * scale.span)]);
  });
  svg.addEventListener("click", () => cross !== null && go(cross));
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!move || !stops.length) return;
    event.preventDefault();
    const i = cross === null ? (move < 0 ? stops.length : -1) : nearest(stops, cross);
    go(stops[clamp(i + move, 0, stops.length - 1)]);
  });
  onResize(node, draw);
  return {
    node,
    update(changed) {
      options = changed;
      if (options.at !== undefined) cross = options.at;
      legend.replaceChildren(...options.series.filter((each) => each.name && each.kind !== "thin").map((each) =>
        make("span", { style: "margin-right: 1.25em" },
          make("span", { class: "key", style: `background: var(${each.colour})` }), each.name)));
      if (node.clientWidth) draw(node.clientWidth);
    },
  };
}

// The index of the value nearest to x in an ascending list.
function nearest(list, x) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < x) low = middle;
    else high = middle;
  }
  return x - list[low] <= list[high] - x ? low : high;
}
