// Differences of accuracies as text, and with their intervals as a picture.

const shareOf = (k) => percent(k / nHeads, 2);
const headsIn = (k) => `${k} ${k === 1 ? 'head' : 'heads'}`;

function signed(v, n = 3) {
  if (!isNumber(v)) return 'none';
  const near = Number(v.toFixed(9)); // grid lines at 1e-17 are at 0
  const text = digits(Math.abs(near), n);
  return near === 0 ? text : `${near < 0 ? '\u2212' : '+'}${text}`;
}

// Differences of accuracies, to a tenth of a point.
function inPoints(v) {
  if (!isNumber(v)) return 'none';
  const text = Math.abs(100 * v).toFixed(1);
  if (Number(text) === 0) return text;
  return `${v < 0 ? '\u2212' : '+'}${text}`;
}

function marker(parent, kind, x, y, colour) {
  const r = 4;
  const shapes = {
    circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${
      -2 * r} 0`,
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}Z`,
    diamond: `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${
      -r - 1} ${-r - 1}Z`,
    triangle: `M${x} ${y - r - 1}l${r + 1} ${2 * r}h${-2 * r - 2}Z`,
  };
  make(parent, 'path', {
    d: shapes[kind], fill: colour, stroke: 'var(--paper)', 'stroke-width': 1,
  });
}

// [low, high] around values: four round steps of which one ends at 0.
function rounded(low, high) {
  const span = Math.max(high - low, 1e-6);
  for (let power = Math.floor(Math.log10(span / 4)); ; power++) {
    for (const factor of [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8]) {
      const step = factor * 10 ** power;
      const from = Math.floor(low / step + 1e-9) * step;
      if (from + 4 * step >= high - 1e-9 * step) return [from, from + 4 * step];
    }
  }
}

// Differences with their intervals, about the line of no difference.
function forest(box, endpoint) {
  if (!endpoint) {
    make(box, 'p', {class: 'hint'}, 'The primary endpoint cannot be said: the '
      + 'top group or the layer-matched one was not cut.');
    return;
  }
  const rows = endpoint.rows;
  const ends = rows.flatMap(([, values]) => values).filter(isNumber);
  const [low, high] = rounded(Math.min(0, ...ends), Math.max(0, ...ends));
  const text = ([name, [v, from, to]]) => `${name} ${inPoints(v)} points`
    + (isNumber(from) ? ` (${inPoints(from)} to ${inPoints(to)})`
      : ', no interval');
  onWidth(box, (width) => {
    box.replaceChildren();
    const top = 6;
    const step = 54;
    const bottom = top + rows.length * step;
    const left = 26;
    const xOf = (v) => left + (width - 2 * left) * (v - low) / (high - low);
    const svg = make(box, 'svg', {
      width, height: bottom + 40, viewBox: `0 0 ${width} ${bottom + 40}`,
      role: 'img', 'aria-label': rows.map(text).join('; '),
    });
    for (let i = 0; i <= 4; i++) {
      const v = low + (high - low) * i / 4;
      make(svg, 'line', {
        x1: xOf(v), x2: xOf(v), y1: top, y2: bottom, stroke: 'var(--line)',
      });
      make(svg, 'text', {
        x: xOf(v), y: bottom + 16, 'text-anchor': 'middle',
      }, signed(100 * v));
    }
    make(svg, 'line', {
      x1: xOf(0), x2: xOf(0), y1: top, y2: bottom, stroke: 'var(--ink)',
      'stroke-width': 1.5, class: 'zero',
    });
    make(svg, 'text', {
      x: width / 2, y: bottom + 34, 'text-anchor': 'middle',
    }, 'points of accuracy, top minus layer-matched');
    rows.forEach((row, i) => {
      const [name, [v, from, to]] = row;
      const isPrimary = i === rows.length - 1;
      const y = top + i * step + 36;
      const colour = isPrimary ? 'var(--top)' : 'var(--accent)';
      make(svg, 'text', {x: 2, y: y - 18, class: 'strong halo'}, name);
      make(svg, 'text', {
        x: width - 2, y: y - 18, 'text-anchor': 'end', class: 'halo',
      }, text(['', row[1]]).trim());
      if (isNumber(from)) {
        make(svg, 'line', {
          x1: xOf(from), x2: xOf(to), y1: y, y2: y, stroke: colour,
          'stroke-width': isPrimary ? 4 : 2.5, class: 'interval',
        });
        for (const end of [from, to]) {
          make(svg, 'line', {
            x1: xOf(end), x2: xOf(end), y1: y - 6, y2: y + 6, stroke: colour,
            'stroke-width': 2,
          });
        }
      }
      marker(svg, isPrimary ? 'diamond' : 'square', xOf(v), y, colour);
    });
  });
}
