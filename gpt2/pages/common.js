// What every page shares: its data, elements, text made visible, numbers and colours.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const SVG = "http://www.w3.org/2000/svg";
const redraws = [];  // called when the colour scheme changes

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Characters that show nothing or reorder what is around them, and lone surrogates: bytes of divided characters.
const UNSEEN = new RegExp("[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202f" +
  "\\u2060-\\u206f\\ufeff\\udc80-\\udcff]", "u");

function sign(character) {
  const code = character.codePointAt(0);
  if (character === "\n") return "↵";
  if (character === "\t") return "⇥";
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "␡";
  if (code >= 0xdc80 && code <= 0xdcff) return (code - 0xdc00).toString(16).toUpperCase();
  return "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// The text as a string in which everything can be seen.
function plain(text) {
  return Array.from(text, (character) => (UNSEEN.test(character) ? sign(character) : character)).join("");
}

// The same as nodes. spaces: whether those at the ends are dots.
function shown(text, spaces = false) {
  const nodes = [];
  const characters = Array.from(text);
  const first = characters.findIndex((character) => character !== " ");
  characters.forEach((character, i) => {
    const isByte = /[\udc80-\udcff]/u.test(character);
    if (UNSEEN.test(character)) {
      nodes.push(make("span", { class: isByte ? "byte" : "sign" }, sign(character)));
    } else if (spaces && character === " " && (first < 0 || i < first || i === characters.length - 1)) {
      nodes.push(make("span", { class: "sign" }, "·"));
    } else if (typeof nodes[nodes.length - 1] === "string") {
      nodes[nodes.length - 1] += character;
    } else {
      nodes.push(character);
    }
  });
  return nodes;
}

function percent(p) {
  if (p >= 0.9995) return "100%";
  return p < 1e-6 ? "< 0.0001%" : Number((100 * p).toPrecision(p < 0.01 ? 2 : 3)) + "%";
}

function number(x) {
  if (x === null || !Number.isFinite(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e15 || size < 1e-3) return x.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1000) return Math.round(x).toLocaleString("en-US");
  return String(Number(x.toPrecision(4)));
}

function clamp(x, low, high) {
  return Math.max(low, Math.min(high, x));
}

// A colour of the style sheet, by the name of its property, as [red, green, blue].
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function tint(node, share, property = null) {
  node.style.setProperty("--share", (100 * clamp(share, 0, 1)).toFixed(1) + "%");
  if (property) node.style.setProperty("--tint", `var(${property})`);
}

// Calls draw(width) whenever a node's width or the colour scheme changes.
function onResize(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth !== width && node.clientWidth > 0) draw((width = node.clientWidth));
  }).observe(node);
  redraws.push(() => width && draw(width));
}

// A line that says what a picture shows at its mark; read aloud only while the picture has the focus.
function readoutOf(picture) {
  const line = make("p", { class: "readout" });
  picture.addEventListener("focus", () => line.setAttribute("aria-live", "polite"));
  picture.addEventListener("blur", () => line.removeAttribute("aria-live"));
  return line;
}

function choices(legend, names, chosen, choose) {
  const group = legend.replace(/\W/g, "-");
  const labels = names.map((name) =>
    make("label", {}, make("input", {
      type: "radio", name: group, value: name, checked: name === chosen, onchange: () => choose(name),
    }), name));
  return make("fieldset", { class: "choices" }, make("legend", {}, legend), ...labels);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((draw) => draw()));
