// The page of an ablation: which heads each set cut, and the wiring.

function option(select, value, text) {
  make(select, 'option', {value}, text);
}

// For every head the share of the sets in which it was cut.
function sharesOf(sets) {
  const share = new Array(nHeads).fill(0);
  for (const set of sets) {
    for (const x of set.heads) share[x] += 1 / sets.length;
  }
  return share;
}

const setsOf = (group, k) => data.sets.filter(
  (set) => set.group === group && set.k === k);

// Whether a group cut a head, or in how many of its draws, as text.
function cutIn(x, group, k) {
  const sets = setsOf(group, k);
  const n = sets.filter((set) => set.heads.includes(x)).length;
  if (!n) return '';
  return sets.length > 1 ? `${n}/${sets.length}` : '\u2713';
}

function drawMember(x) {
  const card = byId('card');
  card.replaceChildren();
  make(card, 'h3', {}, `Head ${nameOf(x)}`);
  make(card, 'p', {class: 'sub'}, 'Which groups cut it, by number of heads; for '
    + 'those that are drawn, in how many draws.');
  const table = make(make(card, 'div', {class: 'scroll'}), 'table',
    {class: 'compact member'});
  const titles = make(make(table, 'thead'), 'tr');
  make(titles, 'th', {scope: 'col'}, 'heads');
  for (const {title} of data.groups) make(titles, 'th', {scope: 'col'}, title);
  const body = make(table, 'tbody');
  for (const k of data.ks) {
    const row = make(body, 'tr');
    make(row, 'td', {}, k);
    for (const {name} of data.groups) make(row, 'td', {}, cutIn(x, name, k));
  }
}

function drawCuts() {
  const group = byId('group');
  const count = byId('count');
  const draw = byId('draw');
  let wanted = ''; // draw of the groups that are drawn; '' is all of them
  for (const {name, title} of data.groups) option(group, name, title);
  for (const k of data.ks) option(count, k, `${k} (${shareOf(k)})`);
  group.value = data.top;
  count.value = String(data.k || data.ks[0]);

  function drawsChoices() {
    const sets = setsOf(group.value, Number(count.value));
    draw.replaceChildren();
    if (sets.length > 1) option(draw, '', `all ${sets.length}`);
    sets.forEach((set, i) => option(draw, i, `draw ${set.seed ?? 1}`));
    byId('draw-label').hidden = sets.length < 2;
    draw.value = sets.length > 1 ? wanted : 0;
  }

  function chosen() {
    const sets = setsOf(group.value, Number(count.value));
    return draw.value === '' ? sets : [sets[Number(draw.value)]];
  }

  function asOptions() {
    const sets = chosen();
    const k = Number(count.value);
    const share = sharesOf(sets);
    const top = sharesOf(setsOf(data.top, k));
    const {title} = data.groups.find(({name}) => name === group.value);
    const words = (x) => {
      if (!share[x]) return 'not cut';
      const n = Math.round(share[x] * sets.length);
      return sets.length > 1 ? `cut in ${n} of ${sets.length} draws` : 'cut';
    };
    return {
      values: share.map((v) => v || null), max: 1, tallest: 34,
      label: `Heads cut: ${title}, ${headsIn(k)}`,
      ringed: top,
      colour: (v) => 'color-mix(in srgb, '
        + `var(--${group.value}) ${25 + 75 * v}%, var(--empty))`,
      text: (x) => `head ${nameOf(x)}\n${title}, ${headsIn(k)}: ${words(x)}`
        + (top[x] && group.value !== data.top ? '\nin the top' : ''),
    };
  }

  function tell() {
    const sets = chosen();
    const notes = [...new Set(sets.map((set) => set.note).filter(Boolean))];
    let text = sets.length > 1
      ? 'The stronger the colour, the more draws cut the head. '
      : 'As --heads takes them: ';
    if (notes.length) text = `Note: ${notes.join('; ')}. ${text}`;
    byId('set-hint').textContent = text;
    byId('set-text').textContent = sets.length > 1
      ? '' : sets[0].heads.map(nameOf).join(',');
  }

  drawsChoices();
  const map = headMap(byId('head-map'), asOptions());
  tell();
  draw.addEventListener('change', () => {
    wanted = draw.value;
  });
  for (const select of [group, count, draw]) {
    select.addEventListener('change', () => {
      drawsChoices();
      map.update(asOptions());
      tell();
    });
  }
}

function filterFlips() {
  const select = byId('turned');
  if (!select) return;
  const rows = [...document.querySelectorAll('.flips tbody tr')];
  select.addEventListener('change', () => {
    for (const row of rows) {
      const kinds = row.dataset.kinds.split(' ');
      row.hidden = select.value !== '' && !kinds.includes(select.value);
    }
    say(`${rows.filter((row) => !row.hidden).length} examples`);
  });
}

forest(byId('forest'), data.endpoint);
curvePanels(byId('panels'));
if (data.ks.length) {
  // Opens at a head that was cut.
  state.head = setsOf(data.top, data.k || data.ks[0])[0].heads[0];
  drawCuts();
  onChoose(drawMember);
  drawMember(state.head);
} else {
  byId('map').hidden = true;
}
filterFlips();
