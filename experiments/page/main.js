// Puts the parts into the page.

function metrics() {
  const most = (values) => Math.max(1e-9, ...values.filter(isNumber));
  const list = [];
  const add = (name, values, format = percent) => {
    if (values && values.some(isNumber)) {
      list.push({name, values, max: most(values), format});
    }
  };
  if (data.kind === 'inspect') {
    for (const [name, values] of Object.entries(data.by_set)) {
      add(`attention on the evidence, ${name} rows`, values);
    }
    return list;
  }
  const options = data.findings.options;
  const isPlain = heads.score.every((v, x) => v === heads.ram[x]);
  if (!isPlain) add(`score: ${data.score_name}`, heads.score, digits);
  add(`RAM, ${options.query} rows`, heads.ram);
  add('lift over even looking', heads.lift, digits);
  add('all it reads from the pictures', heads.mass_visual);
  add('attention on the largest distractor', heads.mass_distractor);
  add('inclusion in the selection', heads.inclusion);
  return list;
}

function drawMap() {
  const list = metrics();
  const select = byId('metric');
  list.forEach(({name}, k) => make(select, 'option', {value: k}, name));
  const text = (metric) => (x) => (metric === list[0] ? headTip(x)
    : `${headTip(x)}\n${metric.name}: ${metric.format(metric.values[x])}`);
  const asOptions = (metric) => ({
    values: metric.values, max: metric.max, tallest: 44,
    label: `${metric.name}, by layer and head`, text: text(metric),
  });
  const box = byId('head-map');
  const map = headMap(box, asOptions(list[0]));
  const keyOf = (metric) => colourKey(box.parentNode, metric.max,
    metric.format, metric.values.some((v) => isNumber(v) && v < 0));
  let key = keyOf(list[0]);
  select.addEventListener('change', () => {
    const metric = list[Number(select.value)];
    map.update(asOptions(metric));
    key.remove();
    key = keyOf(metric);
  });
}

function drawRows() {
  const all = Object.values(data.by_set).flat().filter(isNumber);
  const max = Math.max(1e-9, ...all);
  for (const [name, values] of Object.entries(data.by_set)) {
    const found = data.findings.query_sets[name];
    const part = make(byId('row-maps'), 'div');
    make(part, 'h3', {}, name);
    headMap(make(part, 'div'), {
      values, max, tallest: 18, label: `RAM by ${name} rows`,
      text: (x) => `head ${nameOf(x)}\nRAM by ${name} rows `
        + percent(values[x]),
    });
    make(part, 'p', {class: 'hint'}, `best ${found.best}, RAM `
      + `${percent(found.ram)}; ${percent(found.overlap, 3)} of the selection `
      + 'is in its top set');
  }
  colourKey(byId('rows'), max, percent);
}

function drawRanking() {
  const counts = [20, 50, 100, 200].filter((n) => n < nHeads);
  const select = byId('curve-count');
  for (const n of counts) make(select, 'option', {value: n}, `first ${n}`);
  make(select, 'option', {value: nHeads}, `all ${nHeads} heads`);
  const start = nHeads <= 80 ? nHeads : 50;
  select.value = String(start);
  const chart = rankCurve(byId('curve-chart'), start);
  select.addEventListener('change', () => chart.show(Number(select.value)));
  let text = `The score (${data.score_name}) with its 95% interval; `
    + 'filled: selected. ';
  if (data.findings.tests.untested) {
    text += `No null: ${data.findings.tests.untested}.`;
  } else if (data.null_is_comparable) {
    text += 'Dashed: what each head would score if its evidence were that of '
      + 'another question.';
  } else {
    text += 'The null is not drawn: it is of the numerator, not of this '
      + 'score.';
  }
  byId('curve-hint').textContent = `${text} Left and right arrows move.`;
}

function drawAll() {
  drawMap();
  onChoose(drawCard);
  drawCard(state.head);
  viewer();
  if (data.examples.length) {
    byId('examples-hint').textContent = (data.kind === 'rank'
      ? `${data.examples.length} of ${data.n_examples} examples; it opens at `
        + `the one in which head ${nameOf(0)} finds most. Beside the best heads: `
        + 'one from the middle of the ranking, and the one that reads most from '
        + 'the pictures. '
      : '')
      + 'The more a head reads from a place, the brighter it is; one scale '
      + 'for all heads of an example.';
  }
  if (data.kind !== 'rank') return;
  drawRanking();
  drawRows();
  halfBars(byId('halves'), data.findings.split_half);
  sizeCurve(byId('sizes'), data.findings.sample_size,
    data.findings.split_half.overlap_chance);
  depthBars(byId('depth-chart'), data.findings.sparsity.by_depth,
    data.findings.sparsity.mean_by_depth);
  const details = byId('all-heads');
  details.addEventListener('toggle', () => {
    const box = details.querySelector('.scroll');
    if (details.open && !box.firstChild) drawTable(box);
  });
}

drawAll();
