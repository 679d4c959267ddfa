// The ranked curve, the overlap by sample size, and plain bars.

function axes(svg, frame, yMax, format, label, yMin = 0) {
  const {left, top, width, height} = frame;
  for (let k = 0; k <= 4; k++) {
    const y = top + height * (1 - k / 4);
    make(svg, 'line', {
      x1: left, x2: left + width, y1: y, y2: y, stroke: 'var(--line)',
    });
    make(svg, 'text', {x: left - 6, y: y + 4, 'text-anchor': 'end'},
      format(yMin + (yMax - yMin) * k / 4));
  }
  make(svg, 'text', {
    x: left + width / 2, y: top + height + 34, 'text-anchor': 'middle',
  }, label);
}

function rankCurve(box, count) {
  const share = (v) => (data.findings.options.norm === 'lift'
    ? digits(v, 2) : percent(v, 2));
  const value = heads.score;
  const low = heads.score_ci_low;
  const high = heads.score_ci_high;
  const drawNull = data.null_is_comparable && heads.null_mean.some(isNumber);
  let pointer = null;
  let frame = null;
  let svg = null;
  let n = count;
  let cursor = state.head;

  const step = () => frame.width / n;
  const xOf = (x) => frame.left + (x + 0.5) * step();

  function draw(width) {
    box.replaceChildren();
    frame = {left: 50, top: 12, width: width - 62, height: 250};
    const top = Math.max(1e-9, ...Array.from({length: n}, (_, x) => Math.max(
      value[x] ?? 0, high[x] ?? 0)));
    const floor = Math.min(0, ...Array.from({length: n}, (_, x) => Math.min(
      value[x] ?? 0, low[x] ?? 0)));
    const yOf = (v) => frame.top + frame.height * (
      1 - (Math.min(Math.max(v, floor), top) - floor) / (top - floor));
    svg = make(box, 'svg', {
      width, height: 304, viewBox: `0 0 ${width} 304`, class: 'slider',
      tabindex: 0, role: 'slider', 'aria-label': 'Heads by rank',
      'aria-valuemin': 1, 'aria-valuemax': n,
    });
    axes(svg, frame, top, share, 'rank', floor);
    const labels = Math.max(1, Math.ceil(n / (frame.width / 46)));
    for (let x = 0; x < n; x += labels) {
      make(svg, 'text', {
        x: xOf(x), y: frame.top + frame.height + 17, 'text-anchor': 'middle',
      }, x + 1);
    }
    const known = Array.from({length: n}, (_, x) => x)
      .filter((x) => isNumber(value[x]));
    const dense = step() < 5;
    const banded = known.filter((x) => isNumber(low[x]));
    if (dense && banded.length) {
      const points = [
        ...banded.map((x) => `${xOf(x)},${yOf(high[x])}`),
        ...banded.reverse().map((x) => `${xOf(x)},${yOf(low[x])}`),
      ];
      make(svg, 'polygon', {
        points: points.join(' '), fill: 'var(--accent)', opacity: 0.25,
      });
      make(svg, 'polyline', {
        points: known.map((x) => `${xOf(x)},${yOf(value[x])}`).join(' '),
        fill: 'none', stroke: 'var(--accent)', 'stroke-width': 1.5,
      });
    }
    if (drawNull) {
      const points = Array.from({length: n}, (_, x) => x)
        .filter((x) => isNumber(heads.null_mean[x]));
      make(svg, 'polyline', {
        points: points
          .map((x) => `${xOf(x)},${yOf(heads.null_mean[x])}`).join(' '),
        fill: 'none', stroke: 'var(--distractor)', 'stroke-width': 2,
        'stroke-dasharray': '5 3',
      });
    }
    for (const x of known) {
      if (!dense && isNumber(low[x])) {
        make(svg, 'line', {
          x1: xOf(x), x2: xOf(x), y1: yOf(low[x]), y2: yOf(high[x]),
          stroke: 'var(--accent)', 'stroke-width': 2,
        });
      }
      if (!dense || heads.selected[x]) {
        make(svg, 'circle', {
          cx: xOf(x), cy: yOf(value[x]), r: dense ? 2.2 : 3.6,
          fill: heads.selected[x] ? 'var(--accent)' : 'var(--panel)',
          stroke: 'var(--accent)', 'stroke-width': 1.6,
        });
      }
    }
    pointer = make(svg, 'line', {
      y1: frame.top, y2: frame.top + frame.height, stroke: 'var(--chosen)',
      'stroke-width': 2,
    });
    point(Math.min(cursor, n - 1));
  }

  function point(x) {
    cursor = x;
    const inside = x < n;
    pointer.setAttribute('visibility', inside ? 'visible' : 'hidden');
    if (!inside) return;
    pointer.setAttribute('x1', xOf(x));
    pointer.setAttribute('x2', xOf(x));
    svg.setAttribute('aria-valuenow', x + 1);
    svg.setAttribute('aria-valuetext', headTip(x).replaceAll('\n', ', '));
  }

  function nearest(event) {
    const inside = event.clientX - svg.getBoundingClientRect().left;
    const x = Math.floor((inside - frame.left) / step());
    return Math.min(Math.max(x, 0), n - 1);
  }

  function tipText(x) {
    let text = headTip(x);
    if (drawNull && isNumber(heads.null_mean[x])) {
      text += `\nexpected under the null ${share(heads.null_mean[x])}`;
    }
    return text;
  }

  box.addEventListener('pointermove', (event) => {
    showTip(tipText(nearest(event)), event.clientX, event.clientY);
  });
  box.addEventListener('pointerleave', hideTip);
  box.addEventListener('click', (event) => choose(nearest(event)));
  box.addEventListener('keydown', (event) => {
    const moves = {
      ArrowLeft: cursor - 1, ArrowDown: cursor - 1, ArrowRight: cursor + 1,
      ArrowUp: cursor + 1, PageUp: cursor + 10, PageDown: cursor - 10,
      Home: 0, End: n - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(Math.min(Math.max(moves[event.key], 0), n - 1));
    const at = svg.getBoundingClientRect();
    showTip(tipText(cursor), at.left + xOf(cursor), at.top + 30);
  });
  box.addEventListener('focusout', hideTip);
  onWidth(box, draw);
  onChoose((x) => {
    cursor = x;
    if (svg) point(x);
  });
  return {
    show(other) {
      n = other;
      if (svg) draw(Math.floor(box.clientWidth));
    },
  };
}

// Overlap with the full ranking at n examples; n on a logarithmic axis.
function sizeCurve(box, sizes, chance) {
  const points = Object.entries(sizes).map(([n, v]) => [Number(n), v])
    .filter(([, v]) => isNumber(v)).sort((a, b) => a[0] - b[0]);
  if (!points.length) {
    make(box, 'p', {class: 'hint'}, 'Too few examples to tell.');
    return;
  }
  onWidth(box, (width) => {
    box.replaceChildren();
    const frame = {left: 46, top: 10, width: width - 66, height: 170};
    const svg = make(box, 'svg', {
      width, height: 222, viewBox: `0 0 ${width} 222`, role: 'img',
      'aria-label': 'Overlap of the top set at n examples: '
        + points.map(([n, v]) => `${n}: ${percent(v, 2)}`).join(', '),
    });
    axes(svg, frame, 1, (v) => percent(v, 3), 'examples');
    const first = Math.log(points[0][0]);
    const span = Math.max(1e-9, Math.log(points.at(-1)[0]) - first);
    const xOf = (n) => frame.left + frame.width * (
      points.length > 1 ? (Math.log(n) - first) / span : 0.5);
    const yOf = (v) => frame.top + frame.height * (1 - v);
    make(svg, 'line', {
      x1: frame.left, x2: frame.left + frame.width, y1: yOf(chance),
      y2: yOf(chance), stroke: 'var(--distractor)', 'stroke-dasharray': '5 3',
      'stroke-width': 2,
    });
    make(svg, 'polyline', {
      points: points.map(([n, v]) => `${xOf(n)},${yOf(v)}`).join(' '),
      fill: 'none', stroke: 'var(--accent)', 'stroke-width': 2,
    });
    for (const [n, v] of points) {
      const dot = make(svg, 'circle', {
        cx: xOf(n), cy: yOf(v), r: 4, fill: 'var(--accent)',
      });
      make(dot, 'title', {}, `${n} examples: ${percent(v, 3)}`);
      make(svg, 'text', {
        x: xOf(n), y: frame.top + frame.height + 17, 'text-anchor': 'middle',
      }, n);
    }
  });
}

// Bars from 0 to 1 with a tick at what chance gives.
function halfBars(box, found) {
  const bars = [
    [`top ${found.top} in common`, found.overlap, found.overlap_chance],
    ['rank-biased overlap', found.rbo, found.rbo_chance],
    ['Spearman', found.spearman, 0],
    ['Spearman, full size', found.spearman_brown, 0],
  ].filter(([, v]) => isNumber(v));
  onWidth(box, (width) => {
    box.replaceChildren();
    const height = bars.length * 44 + 4;
    const svg = make(box, 'svg', {
      width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
      'aria-label': bars.map(([name, v, chance]) =>
        `${name} ${digits(v)}, chance ${digits(chance, 2)}`).join('; '),
    });
    bars.forEach(([name, v, chance], k) => {
      const y = k * 44;
      const w = width - 8;
      make(svg, 'text', {x: 0, y: y + 13}, name);
      make(svg, 'text', {
        x: width - 4, y: y + 13, 'text-anchor': 'end', class: 'strong',
      }, digits(v));
      make(svg, 'rect', {
        x: 0, y: y + 19, width: w, height: 14, rx: 3, fill: 'var(--empty)',
      });
      make(svg, 'rect', {
        x: 0, y: y + 19, width: Math.max(0, v) * w, height: 14, rx: 3,
        fill: 'var(--accent)',
      });
      make(svg, 'rect', {
        x: chance * w, y: y + 15, width: 3, height: 22,
        fill: 'var(--distractor)', stroke: 'var(--paper)',
      });
    });
  });
}

function depthBars(box, shares, means) {
  const top = Math.max(1e-9, ...shares.filter(isNumber));
  onWidth(box, (width) => {
    box.replaceChildren();
    const frame = {left: 46, top: 22, width: width - 66, height: 170};
    const svg = make(box, 'svg', {
      width, height: 234, viewBox: `0 0 ${width} 234`, role: 'img',
      'aria-label': 'Share of the evidence mass by depth: ' + shares.map(
        (v, k) => `${10 * k} to ${10 * k + 10}%: ${percent(v, 2)}`).join(', '),
    });
    axes(svg, frame, top, (v) => percent(v, 2),
      'depth, from the embeddings to the answer');
    const step = frame.width / shares.length;
    for (let k = 0; k <= shares.length; k += step > 34 ? 1 : 2) {
      make(svg, 'text', {
        x: frame.left + k * step, y: frame.top + frame.height + 16,
        'text-anchor': 'middle',
      }, `${10 * k}%`);
    }
    shares.forEach((v, k) => {
      const x = frame.left + k * step;
      if (!isNumber(means[k])) return;
      const h = frame.height * Math.max(0, v) / top;
      const bar = make(svg, 'rect', {
        x: x + step * 0.12, y: frame.top + frame.height - h,
        width: step * 0.76, height: h, fill: 'var(--accent)', rx: 2,
      });
      make(bar, 'title', {}, `${10 * k} to ${10 * k + 10}% of the depth: `
        + `${percent(v)} of the mass, ${percent(means[k])} a head`);
      if (step > 34) {
        make(svg, 'text', {
          x: x + step / 2, y: frame.top + frame.height - h - 5,
          'text-anchor': 'middle', class: 'strong',
        }, percent(v, 2));
      }
    });
  });
}
