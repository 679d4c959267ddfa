// The browser over examples: pictures with boxes and a head's attention.

const view = {example: 0};

// Cells of a layout as shares of their pictures, unpacked once.
function unpackLayout(packed) {
  const media = words16(packed.media);
  const steps = words16(packed.cells);
  const cells = media.map((_, i) => [0, 1, 2, 3].map(
    (w) => packed.low + packed.span * steps[4 * i + w] / 65535));
  const base = packed.base ? bytes(packed.base) : new Uint8Array(media.length);
  const ones = new Uint8Array(media.length).fill(1);
  const frames = packed.frames ? bytes(packed.frames) : ones;
  return {media, cells, base, frames};
}

// Attention of one kept head over the visual tokens: see report_examples.py.
function attentionOf(example, slot) {
  if (!example.profile || slot < 0) return null;
  const n = example.layoutOf.media.length;
  example.raw = example.raw || bytes(example.profile);
  const part = example.raw.subarray(slot * n, (slot + 1) * n);
  return Array.from(part, (q) => example.tops[slot] * (q / 255) ** 2);
}

function viewer() {
  const layouts = data.layouts.map(unpackLayout);
  for (const example of data.examples) {
    example.layoutOf = layouts[example.layout];
  }
  const slotOf = new Map(data.shown.map((x, slot) => [x, slot]));
  const setIndex = data.sets.indexOf(data.profile_set);
  const stage = byId('stage');
  let tokens = []; // {i, node, value}
  let top = 1;

  const example = () => data.examples[view.example];
  const slot = () => slotOf.get(state.head) ?? -1;

  function tokenTip(token) {
    const shown = example();
    shown.isEvidence = shown.isEvidence || bytes(shown.tokens);
    const kind = shown.isEvidence[token.i] ? ', evidence' : '';
    const value = isNumber(token.value)
      ? `\n${percent(token.value)} of what head ${nameOf(state.head)} reads`
      : '';
    return `visual token ${token.i}${kind}${value}`;
  }

  function drawPicture(shown, index) {
    const {media, cells, base, frames} = shown.layoutOf;
    const {src, width, height} = shown.media[index];
    const mine = [];
    const tiles = byId('tiles').value;
    const wanted = base.some(Boolean) ? Number(tiles) : 0;
    media.forEach((m, i) => {
      const seen = m <= index && index < m + frames[i];
      if (seen && base[i] === wanted) mine.push(i);
    });
    const spans = mine.map((i) => cells[i]);
    const low = (w) => spans.reduce((a, c) => Math.min(a, c[w]), 0);
    const high = (w) => spans.reduce((a, c) => Math.max(a, c[w]), 1);
    const [x0, y0, x1, y1] = [low(0), low(1), high(2), high(3)];
    const figure = make(stage, 'figure');
    const svg = make(figure, 'svg', {
      viewBox: `${x0 * width} ${y0 * height} ${(x1 - x0) * width} `
        + `${(y1 - y0) * height}`,
      role: 'img',
    });
    const image = make(svg, 'image', {
      href: src, x: 0, y: 0, width, height, preserveAspectRatio: 'none',
    });
    // Small drawn pictures are meant to be seen in their own pixels.
    if (Math.max(width, height) < 160) image.style.imageRendering = 'pixelated';
    for (const i of mine) {
      const [cx0, cy0, cx1, cy1] = cells[i];
      const node = make(svg, 'rect', {
        x: cx0 * width, y: cy0 * height, width: (cx1 - cx0) * width,
        height: (cy1 - cy0) * height, class: 'token', 'data-token':
        tokens.length,
      });
      tokens.push({i, node, value: null});
    }
    if (spans.length) shadeCropped(svg, spans, width, height);
    const boxes = make(svg, 'g', {class: 'boxes'});
    const outline = (list, colour, dash) => {
      for (const [m, bx0, by0, bx1, by1] of list) {
        if (m !== index) continue;
        for (const [stroke, thick] of [['#000', 4.5], [colour, 2.5]]) {
          make(boxes, 'rect', {
            x: bx0 * width, y: by0 * height, width: (bx1 - bx0) * width,
            height: (by1 - by0) * height, fill: 'none', stroke,
            'stroke-width': thick, 'stroke-dasharray': dash,
            'vector-effect': 'non-scaling-stroke', 'pointer-events': 'none',
          });
        }
      }
    };
    outline(shown.distractors, '#ffb347', '5 4');
    outline(shown.evidence, '#6cc6ff', 'none');
    if (shown.media.length > 1) {
      const here = shown.evidence.some(([m]) => m === index);
      make(figure, 'figcaption', {},
        `picture ${index + 1} of ${shown.media.length}`
        + (here ? ', with evidence' : ''));
    }
    const count = (list) => list.filter(([m]) => m === index).length;
    svg.setAttribute('aria-label', `Picture ${index + 1} of `
      + `${shown.media.length}: ${count(shown.evidence)} evidence boxes, `
      + `${count(shown.distractors)} distractor boxes`);
  }

  // What the model's own crop takes away is greyed, or it would look lit.
  function shadeCropped(svg, spans, width, height) {
    const x0 = Math.min(...spans.map((c) => c[0])) * width;
    const y0 = Math.min(...spans.map((c) => c[1])) * height;
    const x1 = Math.max(...spans.map((c) => c[2])) * width;
    const y1 = Math.max(...spans.map((c) => c[3])) * height;
    const shade = make(svg, 'path', {
      d: `M0 0H${width}V${height}H0Z M${x0} ${y0}H${x1}V${y1}H${x0}Z`,
      'fill-rule': 'evenodd', fill: '#777', opacity: 0.85,
      'clip-path': `inset(0)`,
    });
    make(shade, 'title', {}, 'not shown to the model');
    const beyond = 1e-3 * width;
    if (x0 < beyond && y0 < beyond && x1 > width - beyond
        && y1 > height - beyond) {
      shade.remove();
    }
  }

  function drawExample() {
    const shown = example();
    tokens = [];
    stage.replaceChildren();
    stage.classList.toggle('many', shown.media.length > 1);
    byId('tiles-label').hidden = !shown.layoutOf.base.some(Boolean);
    shown.media.forEach((_, index) => drawPicture(shown, index));
    byId('example').value = String(view.example);
    byId('question').textContent = shown.question;
    const answer = byId('answer');
    answer.textContent = shown.answer;
    make(answer, 'span', {class: shown.correct ? 'right' : 'wrong'},
      shown.correct ? '\u2713 the model answers this'
        : '\u2717 the model answers otherwise');
    drawHead();
  }

  function drawHead() {
    const shown = example();
    const at = slot();
    for (const chip of byId('chips').querySelectorAll('input')) {
      chip.checked = Number(chip.value) === state.head;
    }
    const values = attentionOf(shown, at);
    const own = byId('own-scale').checked;
    const shading = byId('shading').value;
    top = 0;
    if (values) {
      top = own ? shown.tops[at] : Math.max(...shown.tops);
    }
    for (const token of tokens) {
      token.value = values ? values[token.i] : null;
      const share = values && top > 0 ? Math.min(1, token.value / top) : 0;
      // A square root, or all but the brightest token would look the same.
      const lit = Math.sqrt(share);
      const isColour = shading === 'colour';
      token.node.style.fill = isColour ? viridis(lit) : '#000';
      let opacity = isColour ? 0.72 : 0.8 * (1 - lit);
      if (!values || shading === 'none') opacity = 0;
      token.node.style.fillOpacity = opacity;
    }
    for (const group of stage.querySelectorAll('.boxes')) {
      group.style.display = byId('boxes').checked ? '' : 'none';
    }
    drawScale(shading);
    drawMasses(shown, at);
  }

  function drawScale(shading) {
    const key = byId('scale-key');
    key.replaceChildren();
    if (shading === 'none' || !(top > 0)) return;
    key.append('attention of a token: 0');
    make(key, 'i').style.background = shading === 'colour'
      ? VIRIDIS_CSS : 'linear-gradient(90deg, #222, #fff)';
    key.append(percent(top, 2));
  }

  function drawMasses(shown, at) {
    const looks = byId('looks');
    const box = byId('masses');
    looks.replaceChildren();
    box.replaceChildren();
    if (at < 0) {
      looks.textContent = `Head ${nameOf(state.head)} was chosen, whose `
        + 'attention this page does not hold; the heads above can be looked '
        + 'at.';
      return;
    }
    const mass = shown.mass[at][setIndex].map((v) => v / 1e6);
    const count = shown.count;
    const name = (r) => data.regions[r];
    const nVisual = data.visual.reduce((sum, r) => sum + count[r], 0);
    const onVisual = data.visual.reduce((sum, r) => sum + mass[r], 0);
    looks.append(`From the ${data.profile_set} rows head `
      + `${nameOf(state.head)} puts `);
    make(looks, 'b', {}, percent(mass[0]));
    looks.append(` of its attention on the evidence: ${count[0]} of `
      + `${nVisual} visual tokens, ${percent(mass[0] / onVisual, 2)} of what `
      + 'it reads from the pictures.');
    const present = mass.map((v, r) => [name(r), v, count[r]])
      .filter(([, , n]) => n > 0);
    stackBar(box, present.map(([region, v]) => [region, v]));
    const table = make(box, 'table');
    const titles = make(make(table, 'thead'), 'tr');
    for (const title of ['region', 'attention', 'tokens', 'a token']) {
      make(titles, 'th', {scope: 'col'}, title);
    }
    const body = make(table, 'tbody');
    for (const [region, v, n] of present) {
      regionRow(body, region, [percent(v), n, percent(v / n, 2)]);
    }
  }

  function turn(by) {
    const n = data.examples.length;
    view.example = (view.example + by + n) % n;
    drawExample();
    say(`Example ${view.example + 1} of ${n}: ${example().question}`);
  }

  if (!data.examples.length) {
    byId('examples-hint').textContent = 'No example fitted into this page; '
      + 'experiments.inspect shows any of them.';
    document.querySelector('.viewer').hidden = true;
    return;
  }
  const select = byId('example');
  data.examples.forEach((shown, k) => {
    make(select, 'option', {value: k},
      `${k + 1}. ${shown.task}: ${shown.question}`.slice(0, 120));
  });
  byId('pager').hidden = data.examples.length < 2;
  for (const x of data.shown) {
    const label = make(byId('chips'), 'label');
    make(label, 'input', {type: 'radio', name: 'chip', value: x});
    label.append(nameOf(x));
    make(label, 'small', {}, ` ${percent(heads.ram[x], 2)}`);
  }
  byId('chips').addEventListener('change', (event) => {
    choose(Number(event.target.value));
  });
  select.addEventListener('change', () => {
    view.example = Number(select.value);
    drawExample();
  });
  byId('before').addEventListener('click', () => turn(-1));
  byId('after').addEventListener('click', () => turn(1));
  stage.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft') turn(-1);
    else if (event.key === 'ArrowRight') turn(1);
    else return;
    event.preventDefault();
  });
  stage.addEventListener('pointermove', (event) => {
    const index = event.target.dataset.token;
    if (index === undefined) hideTip();
    else showTip(tokenTip(tokens[index]), event.clientX, event.clientY);
  });
  stage.addEventListener('pointerleave', hideTip);
  for (const id of ['shading', 'boxes', 'own-scale']) {
    byId(id).addEventListener('change', drawHead);
  }
  byId('tiles').addEventListener('change', drawExample);
  onChoose(drawHead);
  const found = data.examples.map(
    (shown) => shown.mass[slotOf.get(0)][setIndex][0]);
  view.example = found.indexOf(Math.max(...found));
  drawExample();
}
