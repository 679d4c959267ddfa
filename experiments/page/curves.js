// Curves by number of heads cut: a panel a task, a line a group.

// Square roots: small numbers of heads are where a curve bends.
const spread = (k) => Math.sqrt(k);

// values and draws of a line; what a tooltip adds to a number.
const MEASURES = {
  accuracy: {
    values: (line) => line.accuracy,
    draws: (line) => line.draws,
    format: percent,
    onAxis: percent,
    unit: '',
  },
  delta: {
    values: (line) => line.delta,
    draws: (line) => line.draws.map(
      (drawn) => drawn.map((v) => v - line.accuracy[0][0])),
    format: inPoints,
    onAxis: (v) => signed(100 * v),
    unit: ' points',
  },
  logprob: {
    values: (line) => line.logprob.map((v) => [v, null, null]),
    draws: (line) => line.draws_logprob,
    format: signed,
    onAxis: signed,
    unit: ' nats',
  },
};

// Told apart without colour too: [dashes, marker].
const STYLES = {
  top: ['none', 'circle'],
  given: ['none', 'circle'],
  layer_matched: ['none', 'square'],
  random: ['6 3', 'diamond'],
  median: ['2 3', 'triangle'],
  bottom: ['8 3 2 3', 'square'],
};

function swatch(parent, group) {
  const [dashes, kind] = STYLES[group];
  const colour = `var(--${group})`;
  const svg = make(parent, 'svg', {
    width: 34, height: 14, viewBox: '0 0 34 14', 'aria-hidden': 'true',
  });
  make(svg, 'line', {
    x1: 0, x2: 34, y1: 7, y2: 7, stroke: colour, 'stroke-width': 2,
    'stroke-dasharray': dashes,
  });
  marker(svg, kind, 17, 7, colour);
}

// One panel a part (a task, or all tasks of a kind). They share the measure,
// the groups shown, the scale and the k that is pointed at.
function curvePanels(box) {
  const ks = [0, ...data.ks];
  const most = spread(ks.at(-1)) || 1;
  const shown = new Set(data.groups.map((group) => group.name));
  const panels = [];
  let measure = MEASURES.accuracy;
  let cursor = Math.max(0, ks.indexOf(data.k));

  function range() {
    if (measure === MEASURES.accuracy) return [0, 1];
    const all = data.parts.flatMap((part) => data.groups.flatMap(({name}) => [
      ...measure.values(part.lines[name]).flat(),
      ...measure.draws(part.lines[name]).flat(),
    ])).filter(isNumber);
    return rounded(Math.min(0, ...all), Math.max(0, ...all));
  }

  function valueText([value, low, high]) {
    const known = isNumber(low)
      ? ` (${measure.format(low)} to ${measure.format(high)})` : '';
    return measure.format(value) + measure.unit + known;
  }

  function tipText(part, i) {
    const k = ks[i];
    const lines = [k ? `${headsIn(k)} cut (${shareOf(k)})` : 'intact'];
    for (const {name, title} of data.groups) {
      const line = part.lines[name];
      const at = line.k.indexOf(k);
      if (at < 0 || !shown.has(name)) continue;
      const value = measure.values(line)[at];
      if (!k) return `${lines[0]}\n${valueText(value)}`;
      const drawn = measure.draws(line)[at].length;
      lines.push(`${title} ${valueText(value)}`
        + (drawn > 1 ? `, ${drawn} draws` : ''));
    }
    return lines.join('\n');
  }

  function addPanel(part) {
    const root = make(box, 'div', {class: 'panel'});
    const name = {retrieval: 'all look-ups', twin: 'all twins'}[part.name];
    const title = make(root, 'h3', {}, part.pooled ? name : part.name);
    make(title, 'small', {}, ` ${part.n} examples`
      + (part.twin && !part.pooled ? ', no look-up needed' : ''));
    const chart = make(root, 'div');
    let frame = null;
    let svg = null;
    let pointer = null;
    const xOf = (k) => frame.left + frame.width * spread(k) / most;

    function drawTicks() {
      let last = Infinity;
      for (const k of [...ks].reverse()) {
        make(svg, 'line', {
          x1: xOf(k), x2: xOf(k), y1: frame.top + frame.height,
          y2: frame.top + frame.height + 4, stroke: 'var(--soft)',
        });
        if (last - xOf(k) < 46) continue;
        last = xOf(k);
        const place = {x: xOf(k), 'text-anchor': 'middle'};
        make(svg, 'text', {...place, y: frame.top + frame.height + 17}, k);
        if (k) {
          make(svg, 'text', {...place, y: frame.top + frame.height + 31},
            shareOf(k));
        }
      }
      make(svg, 'text', {
        x: frame.left + frame.width / 2, y: frame.top + frame.height + 49,
        'text-anchor': 'middle',
      }, 'heads cut, and their share; square-root scale');
    }

    function drawGroup(group, yOf) {
      const line = part.lines[group];
      const colour = `var(--${group})`;
      const [dashes, kind] = STYLES[group];
      const values = measure.values(line);
      const banded = line.k.map((_, i) => i).filter(
        (i) => isNumber(values[i][1]));
      const layer = make(svg, 'g', {'data-group': group});
      make(layer, 'polygon', {
        points: [
          ...banded.map((i) => `${xOf(line.k[i])},${yOf(values[i][2])}`),
          ...banded.reverse().map(
            (i) => `${xOf(line.k[i])},${yOf(values[i][1])}`),
        ].join(' '),
        fill: colour, opacity: 0.12, class: 'band',
      });
      measure.draws(line).forEach((drawn, i) => drawn.forEach((v, d) => {
        // Aside by group and draw, or points would hide each other.
        const aside = (group === 'random' ? -3 : 3)
          + 6 * (d / Math.max(1, drawn.length - 1) - 0.5);
        make(layer, 'circle', {
          cx: xOf(line.k[i]) + aside, cy: yOf(v), r: 1.8, fill: colour,
          opacity: 0.5, class: 'draw',
        });
      }));
      make(layer, 'polyline', {
        points: line.k.map((k, i) => `${xOf(k)},${yOf(values[i][0])}`).join(' '),
        fill: 'none', stroke: colour, 'stroke-width': 2,
        'stroke-dasharray': dashes,
      });
      line.k.forEach((k, i) => marker(layer, kind, xOf(k), yOf(values[i][0]),
        colour));
    }

    function draw(width) {
      const hadFocus = svg !== null && document.activeElement === svg;
      chart.replaceChildren();
      frame = {left: 50, top: 10, width: width - 66, height: 210};
      const [low, high] = range();
      const yOf = (v) => frame.top + frame.height * (high - v) / (high - low);
      svg = make(chart, 'svg', {
        width, height: 276, viewBox: `0 0 ${width} 276`, class: 'slider',
        tabindex: 0, role: 'slider', 'aria-valuemin': 0,
        'aria-label': `${title.textContent}, by number of heads cut`,
        'aria-valuemax': ks.at(-1),
      });
      axes(svg, frame, high, measure.onAxis, '', low);
      drawTicks();
      if (low < 0) {
        make(svg, 'line', {
          x1: frame.left, x2: frame.left + frame.width, y1: yOf(0),
          y2: yOf(0), stroke: 'var(--soft)',
        });
      }
      pointer = make(svg, 'line', {
        y1: frame.top, y2: frame.top + frame.height, stroke: 'var(--chosen)',
        'stroke-width': 1.5, class: 'pointer',
      });
      // The first group is drawn last, above the others.
      for (const {name: group} of [...data.groups].reverse()) {
        if (shown.has(group)) drawGroup(group, yOf);
      }
      point();
      if (hadFocus) svg.focus({preventScroll: true});
    }

    function point() {
      pointer.setAttribute('x1', xOf(ks[cursor]));
      pointer.setAttribute('x2', xOf(ks[cursor]));
      svg.setAttribute('aria-valuenow', ks[cursor]);
      svg.setAttribute('aria-valuetext',
        tipText(part, cursor).replaceAll('\n', ', '));
    }

    function nearest(event) {
      const x = event.clientX - svg.getBoundingClientRect().left;
      const away = ks.map((k) => Math.abs(xOf(k) - x));
      return away.indexOf(Math.min(...away));
    }

    function tipAtCursor() {
      const at = svg.getBoundingClientRect();
      showTip(tipText(part, cursor), at.left + xOf(ks[cursor]), at.top + 20);
    }

    chart.addEventListener('pointermove', (event) => {
      pointAt(nearest(event));
      showTip(tipText(part, cursor), event.clientX, event.clientY);
    });
    chart.addEventListener('pointerleave', hideTip);
    chart.addEventListener('focusout', hideTip);
    chart.addEventListener('keydown', (event) => {
      const moves = {
        ArrowLeft: cursor - 1, ArrowDown: cursor - 1, ArrowRight: cursor + 1,
        ArrowUp: cursor + 1, Home: 0, End: ks.length - 1,
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      pointAt(Math.min(Math.max(moves[event.key], 0), ks.length - 1));
      tipAtCursor();
    });
    chart.addEventListener('focusin', () => {
      if (svg.matches(':focus-visible')) tipAtCursor();
    });
    onWidth(chart, draw);
    panels.push({
      point: () => svg && point(),
      draw: () => svg && draw(Math.floor(chart.clientWidth)),
    });
  }

  function pointAt(i) {
    cursor = i;
    for (const panel of panels) panel.point();
  }

  const redraw = () => panels.forEach((panel) => panel.draw());
  for (const {name, title} of data.groups) {
    const label = make(byId('legend'), 'label');
    const check = make(label, 'input', {type: 'checkbox', value: name});
    check.checked = true;
    swatch(label, name);
    label.append(title);
    check.addEventListener('change', () => {
      if (check.checked) shown.add(name);
      else shown.delete(name);
      redraw();
    });
  }
  const select = byId('measure');
  select.addEventListener('change', () => {
    measure = MEASURES[select.value];
    redraw();
  });
  measure = MEASURES[select.value];
  data.parts.forEach(addPanel);
}
