// A matrix as coloured cells, gone through by mouse, touch and arrow keys.

const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// label: what a screen reader says. largest: a cell's greatest width. height(width of a cell): its height.
// pick(row, column): called for a cell that is clicked or moved to. describe(row, column): the line below.
// Returns {node, update(content)}; content: {rows, columns, value(row, column) from 0 to 1 or null, selected: [row,
// column]}.
function heatMap({ label, largest = 28, height = (width) => width, pick, describe, framed = false }) {
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": label });
  const readout = readoutOf(canvas);
  const node = make("div", { class: framed ? "heatmap framed" : "heatmap" }, canvas, readout);
  let content = null;
  let cell = [1, 1];

  function draw(available) {
    if (!content || !content.rows || !content.columns) return;
    const { rows, columns, value, selected } = content;
    const width = Math.min(largest, (available - 2) / columns);
    cell = [width, height(width)];
    const size = [width * columns, cell[1] * rows];
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(size[0] * ratio);
    canvas.height = Math.round(size[1] * ratio);
    canvas.style.width = `${size[0]}px`;
    canvas.style.height = `${size[1]}px`;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(painted(rows, columns, value), 0, 0, canvas.width, canvas.height);
    context.scale(ratio, ratio);
    outline(context, selected, columns);
  }

  function painted(rows, columns, value) {
    const low = colour("--ramp-low"), high = colour("--ramp-high"), paper = colour("--paper");
    const image = new ImageData(columns, rows);
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const v = value(r, c);
        const rgb = v === null ? paper : low.map((from, i) => from + (high[i] - from) * clamp(v, 0, 1));
        image.data.set([...rgb, 255], 4 * (r * columns + c));
      }
    }
    const small = make("canvas", { width: columns, height: rows });
    small.getContext("2d").putImageData(image, 0, 0);
    return small;
  }

  function outline(context, [row, column], columns) {
    const [width, tall] = cell;
    const x = clamp(column * width - 1, 1, columns * width - width - 1);
    const y = clamp(row * tall - 1, 1, content.rows * tall - tall - 1);
    for (const [thick, property] of [[5, "--paper"], [2, "--series-2"]]) {
      context.lineWidth = thick;
      context.strokeStyle = `rgb(${colour(property).join()})`;
      context.strokeRect(x, y, width, tall);
    }
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const edge = canvas.clientLeft;
    const place = [(event.clientY - box.top - edge) / cell[1], (event.clientX - box.left - edge) / cell[0]];
    return [clamp(Math.floor(place[0]), 0, content.rows - 1), clamp(Math.floor(place[1]), 0, content.columns - 1)];
  }

  function say(row, column) {
    readout.textContent = describe(row, column);
  }

  canvas.addEventListener("click", (event) => pick(...at(event)));
  canvas.addEventListener("pointermove", (event) => say(...at(event)));
  canvas.addEventListener("pointerleave", () => say(...content.selected));
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [row, column] = content.selected.map((place, i) => place + KEYS[event.key][i]);
    pick(clamp(row, 0, content.rows - 1), clamp(column, 0, content.columns - 1));
  });
  onResize(node, draw);
  return {
    node,
    update(changed) {
      content = changed;
      say(...content.selected);
      if (node.clientWidth) draw(node.clientWidth);
    },
  };
}
