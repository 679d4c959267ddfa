// What is known of the chosen head, and the table of all.

// A bar of what is read from where; parts are [region, mass].
function stackBar(box, parts) {
  const bar = make(box, 'div', {
    class: 'stack', role: 'img', 'aria-label': parts
      .map(([name, v]) => `${REGION_NAMES[name]} ${percent(v)}`).join(', '),
  });
  for (const [name, v] of parts) {
    const part = make(bar, 'i', {
      title: `${REGION_NAMES[name]}: ${percent(v)}`,
    });
    part.style.background = REGION_COLOURS[name];
    part.style.width = `${100 * Math.max(0, v ?? 0)}%`;
  }
}

function regionRow(body, name, cells) {
  const row = make(body, 'tr');
  const first = make(row, 'td');
  make(first, 'span', {class: 'swatch'}).style.background =
    REGION_COLOURS[name];
  first.append(REGION_NAMES[name]);
  for (const cell of cells) make(row, 'td', {}, cell);
}

function drawCard(x) {
  const card = byId('card');
  card.replaceChildren();
  make(card, 'h3', {}, `Head ${nameOf(x)}`);
  const chosen = heads.selected && heads.selected[x];
  make(card, 'p', {class: 'sub'}, `layer ${heads.layer[x]}, head `
    + `${heads.head[x]} of it; rank ${x + 1} of ${nHeads}`
    + (chosen ? '; selected' : ''));
  const list = make(card, 'dl', {class: 'numbers'});
  const add = (name, text) => {
    make(list, 'dt', {}, name);
    make(list, 'dd', {}, text);
  };
  if (data.kind === 'rank') {
    add('RAM', percent(heads.ram[x]));
    if (isNumber(heads.ci_low[x])) {
      add('95% interval',
        `${percent(heads.ci_low[x])} to ${percent(heads.ci_high[x])}`);
    }
    if (heads.score[x] !== heads.ram[x]) {
      add('score', digits(heads.score[x]));
    }
    add('lift over even looking', digits(heads.lift[x]));
    add('q, evidence of another question', digits(heads.q_value[x], 2));
    add('q, evidence moved elsewhere', digits(heads.q_shift[x], 2));
    add('inclusion', percent(heads.inclusion[x]));
  }
  for (const [name, values] of Object.entries(data.by_set)) {
    const what = data.kind === 'rank' ? 'RAM' : 'on the evidence';
    add(`${what}, ${name} rows`, percent(values[x]));
  }
  if (data.kind !== 'rank') return;
  const evidence = heads.mass_evidence[x];
  const distractor = heads.mass_distractor[x];
  const parts = [
    ['evidence', evidence],
    ['distractor_1', distractor],
    ['other_visual', heads.mass_visual[x] - evidence - distractor],
    ['sink', heads.mass_sink[x]],
    ['question', heads.mass_question[x]],
    ['other_text', heads.mass_text[x]],
  ];
  make(card, 'h3', {}, 'What it reads');
  stackBar(card, parts);
  const body = make(make(card, 'table'), 'tbody');
  for (const [name, v] of parts) regionRow(body, name, [percent(v)]);
}

function drawTable(box) {
  const table = make(box, 'table');
  const titles = ['head', 'rank', 'RAM', '95% interval', 'lift', 'inclusion',
    'q', 'q, moved'];
  const top = make(make(table, 'thead'), 'tr');
  for (const title of titles) make(top, 'th', {scope: 'col'}, title);
  const body = make(table, 'tbody');
  const rows = [];
  for (let x = 0; x < nHeads; x++) {
    const row = make(body, 'tr');
    const button = make(make(row, 'td'), 'button', {
      type: 'button', 'aria-label': `Choose head ${nameOf(x)}`,
    }, nameOf(x));
    button.addEventListener('click', () => choose(x));
    const interval = isNumber(heads.ci_low[x])
      ? `${percent(heads.ci_low[x])} to ${percent(heads.ci_high[x])}` : 'none';
    for (const text of [
      String(x + 1) + (heads.selected[x] ? ' selected' : ''),
      percent(heads.ram[x]), interval, digits(heads.lift[x]),
      percent(heads.inclusion[x]), digits(heads.q_value[x], 2),
      digits(heads.q_shift[x], 2),
    ]) {
      make(row, 'td', {}, text);
    }
    rows.push(row);
  }
  const mark = (chosen) => rows.forEach(
    (row, x) => row.classList.toggle('chosen', x === chosen));
  mark(state.head);
  onChoose(mark);
}
