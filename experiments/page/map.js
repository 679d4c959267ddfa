// The layer x head map: one focusable grid, of which one cell is a tab stop.

function headTip(x) {
  const lines = [`head ${nameOf(x)}, rank ${x + 1} of ${nHeads}`];
  let ram = `RAM ${percent(heads.ram[x])}`;
  if (heads.ci_low && isNumber(heads.ci_low[x])) {
    ram += ` (${percent(heads.ci_low[x])} to ${percent(heads.ci_high[x])})`;
  }
  lines.push(ram);
  if (heads.score && heads.score[x] !== heads.ram[x]) {
    lines.push(`score ${digits(heads.score[x])}`);
  }
  if (heads.lift) lines.push(`lift ${digits(heads.lift[x])}`);
  if (heads.q_value && isNumber(heads.q_value[x])) {
    lines.push(`q ${digits(heads.q_value[x], 2)}`);
  }
  if (data.flags[x]) lines.push(data.flags[x].replaceAll('_', ' '));
  return lines.join('\n');
}

// Args:
//   box: element to draw in.
//   options: values (one a head, ranking order), max, label, tallest (of a
//     cell, in pixels), and text(x) for the tooltip; also colour(share of
//     max), viridis if absent, and ringed (one a head), the selection if
//     absent.
// Returns an object whose update(options) draws other values.
function headMap(box, options) {
  const rows = data.n_layers;
  const columns = data.n_heads;
  const margin = {left: 30, top: 20};
  const scroller = make(box, 'div', {class: 'map-box'});
  let cells = [];
  let svg = null;
  let rings = null;
  let ring = null;
  let chosen = null;
  let at = state.head;
  let size = {w: 0, h: 0};

  const cellOf = (x) => [heads.layer[x], heads.head[x]];
  const place = (x) => {
    const [row, column] = cellOf(x);
    const gap = size.w < 16 ? 0.5 : 1;
    return {
      x: margin.left + column * size.w + gap,
      y: margin.top + row * size.h + gap,
      width: size.w - 2 * gap,
      height: size.h - 2 * gap,
    };
  };

  function move(node, x) {
    for (const [key, value] of Object.entries(place(x))) {
      node.setAttribute(key, value);
    }
  }

  function fill() {
    const {values, max, colour = viridis, ringed = heads.selected} = options;
    for (let x = 0; x < nHeads; x++) {
      const share = isNumber(values[x]) ? values[x] / max : null;
      cells[x].setAttribute(
        'fill', share === null ? 'var(--empty)' : colour(share));
      cells[x].setAttribute(
        'aria-label', options.text(x).replaceAll('\n', ', '));
    }
    rings.replaceChildren();
    for (let x = 0; ringed && x < nHeads; x++) {
      if (!ringed[x]) continue;
      // White around black: seen on any colour of the map.
      const strong = size.w < 16 ? 0.6 : 1;
      for (const [stroke, width] of [['#000', 3.5], ['#fff', 1.6]]) {
        make(rings, 'rect', {
          ...place(x), fill: 'none', stroke, 'stroke-width': strong * width,
        });
      }
    }
    svg.setAttribute('aria-label', options.label);
  }

  function tabStop(x) {
    cells[at].setAttribute('tabindex', -1);
    at = x;
    cells[at].setAttribute('tabindex', 0);
  }

  function draw(width) {
    const hadFocus = svg !== null && svg.contains(document.activeElement);
    scroller.replaceChildren();
    // Below 7 pixels no finger and hardly an eye finds a cell: scroll instead.
    size.w = Math.min(64, Math.max(7, (width - margin.left - 4) / columns));
    size.h = Math.min(options.tallest, Math.max(7, 0.72 * size.w));
    const full = margin.left + columns * size.w + 4;
    const height = margin.top + rows * size.h + 4;
    svg = make(scroller, 'svg', {
      width: full, height, viewBox: `0 0 ${full} ${height}`, role: 'grid',
      'aria-rowcount': rows, 'aria-colcount': columns,
    });
    const stepX = Math.ceil(26 / size.w);
    const stepY = Math.ceil(14 / size.h);
    for (let n = 0; n < columns; n += stepX) {
      make(svg, 'text', {
        x: margin.left + (n + 0.5) * size.w, y: 13, 'text-anchor': 'middle',
        'aria-hidden': 'true',
      }, n);
    }
    for (let l = 0; l < rows; l += stepY) {
      make(svg, 'text', {
        x: margin.left - 7, y: margin.top + (l + 0.5) * size.h + 4,
        'text-anchor': 'end', 'aria-hidden': 'true',
      }, l);
    }
    cells = [];
    for (let l = 0; l < rows; l++) {
      const row = make(svg, 'g', {role: 'row', 'aria-rowindex': l + 1});
      for (let n = 0; n < columns; n++) {
        const x = rankAt.get(`${l}-${n}`);
        cells[x] = make(row, 'rect', {
          ...place(x), rx: size.w > 12 ? 2 : 0, class: 'cell',
          role: 'gridcell', tabindex: x === at ? 0 : -1, 'data-x': x,
          'aria-colindex': n + 1,
        });
      }
    }
    rings = make(svg, 'g', {'pointer-events': 'none'});
    chosen = make(svg, 'rect', {class: 'chosen-ring', rx: 2});
    ring = make(svg, 'rect', {
      class: 'focus-ring', rx: 2, visibility: 'hidden',
    });
    fill();
    mark(state.head);
    if (hadFocus) cells[at].focus({preventScroll: true});
  }

  function mark(x) {
    move(chosen, x);
    for (const cell of svg.querySelectorAll('[aria-selected]')) {
      cell.removeAttribute('aria-selected');
    }
    cells[x].setAttribute('aria-selected', 'true');
    tabStop(x);
  }

  const under = (event) => {
    const x = event.target.dataset ? event.target.dataset.x : undefined;
    return x === undefined ? null : Number(x);
  };

  scroller.addEventListener('pointermove', (event) => {
    const x = under(event);
    if (x === null) hideTip();
    else showTip(options.text(x), event.clientX, event.clientY);
  });
  scroller.addEventListener('pointerleave', hideTip);
  scroller.addEventListener('click', (event) => {
    const x = under(event);
    if (x !== null) choose(x);
  });
  scroller.addEventListener('focusin', (event) => {
    const x = under(event);
    if (x === null) return;
    move(ring, x);
    // A ring for the keyboard's focus, none for the mouse's.
    const byKey = event.target.matches(':focus-visible');
    ring.setAttribute('visibility', byKey ? 'visible' : 'hidden');
    if (byKey) showTipAt(options.text(x), event.target);
  });
  scroller.addEventListener('focusout', () => {
    ring.setAttribute('visibility', 'hidden');
    hideTip();
  });
  scroller.addEventListener('keydown', (event) => {
    const x = under(event);
    if (x === null) return;
    let [row, column] = cellOf(x);
    switch (event.key) {
      case 'ArrowLeft': column -= 1; break;
      case 'ArrowRight': column += 1; break;
      case 'ArrowUp': row -= 1; break;
      case 'ArrowDown': row += 1; break;
      case 'Home': column = 0; break;
      case 'End': column = columns - 1; break;
      case 'Enter':
      case ' ':
        choose(x);
        event.preventDefault();
        return;
      default: return;
    }
    event.preventDefault();
    const next = rankAt.get(`${row}-${column}`);
    if (next === undefined) return;
    tabStop(next);
    cells[next].focus();
  });

  onWidth(box, draw);
  onChoose((x) => {
    if (svg) mark(x);
  });
  return {
    update(changed) {
      options = {...options, ...changed};
      if (svg) fill();
    },
  };
}

function colourKey(box, max, format, hasNegative = false) {
  const key = make(box, 'div', {class: 'bar-key'});
  make(key, 'span', {}, hasNegative ? '0 or less' : '0');
  make(key, 'i').style.background = VIRIDIS_CSS;
  make(key, 'span', {}, format(max));
  return key;
}
