// What the other parts share: the data, making elements, numbers as text,
// colours, the tooltip, and which head is chosen.

const data = JSON.parse(document.getElementById('data').textContent);
const heads = data.heads;
const nHeads = heads.layer.length; // heads are kept in the order of the ranking
const rankAt = new Map(); // 'layer-head' -> place in that order
for (let x = 0; x < nHeads; x++) {
  rankAt.set(`${heads.layer[x]}-${heads.head[x]}`, x);
}

const byId = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';

// Text goes into text nodes only: questions and ids may hold markup.
function make(parent, name, attributes = {}, text = null) {
  const isSvg = parent && parent.namespaceURI === SVG;
  const node = isSvg || name === 'svg'
    ? document.createElementNS(SVG, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const nameOf = (x) => `${heads.layer[x]}-${heads.head[x]}`;
const isNumber = Number.isFinite;

function digits(v, n = 3) {
  if (!isNumber(v)) return 'none';
  return v === 0 ? '0' : String(Number(v.toPrecision(n)));
}

function percent(v, n = 3) {
  if (!isNumber(v)) return 'none';
  return `${digits(100 * v, n)}%`;
}

// Viridis, whose lightness rises evenly and which survives colour blindness.
const STOPS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44],
  [253, 231, 37],
];

function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(at), STOPS.length - 2);
  const mix = STOPS[i].map(
    (c, k) => Math.round(c + (at - i) * (STOPS[i + 1][k] - c)));
  return `rgb(${mix.join(',')})`;
}

const VIRIDIS_CSS = `linear-gradient(90deg, ${
  STOPS.map((c) => `rgb(${c.join(',')})`).join(', ')})`;

// Okabe and Ito's palette: told apart with any colour vision.
const REGION_COLOURS = {
  evidence: '#56b4e9',
  distractor_1: '#e69f00',
  distractor_2: '#eab64d',
  distractor_3: '#efcd88',
  distractor_4: '#f3e0bb',
  other_visual: '#8a8f98',
  sink: '#cc79a7',
  question: '#009e73',
  other_text: '#d55e00',
};
const REGION_NAMES = {
  evidence: 'evidence',
  distractor_1: 'largest distractor',
  distractor_2: '2nd distractor',
  distractor_3: '3rd distractor',
  distractor_4: '4th distractor',
  other_visual: 'rest of the pictures',
  sink: 'sink (first tokens)',
  question: 'question',
  other_text: 'other text',
};

const tip = byId('tip');

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(x + 14, window.innerWidth - box.width - 6);
  const above = y - box.height - 12;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${above > 6 ? above : y + 18}px`;
}

function showTipAt(text, node) {
  const box = node.getBoundingClientRect();
  showTip(text, box.right - 10, box.top);
}

function hideTip() {
  tip.hidden = true;
}

window.addEventListener('scroll', hideTip, {passive: true});
window.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') hideTip();
});

// For charts that are no form elements: what a screen reader should say.
function say(text) {
  byId('said').textContent = text;
}

const listeners = [];
const state = {head: 0};

function onChoose(listener) {
  listeners.push(listener);
}

function choose(x) {
  state.head = x;
  say(`head ${nameOf(x)} chosen`);
  for (const listener of listeners) listener(x);
}

// Draws again whenever the width changes, so that text keeps its size.
function onWidth(node, draw) {
  let before = -1;
  new ResizeObserver(() => {
    const width = Math.floor(node.clientWidth);
    if (width > 0 && width !== before) {
      before = width;
      draw(width);
    }
  }).observe(node);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function words16(text) {
  const raw = bytes(text);
  const view = new DataView(raw.buffer);
  return Array.from({length: raw.length / 2},
    (_, i) => view.getUint16(2 * i, true));
}
