// The Walk: the text's tokens, the picture of one of them (walk_picture.js), and what is told about the chosen part. Value:
//   {"position": index, "ids": [id, ...], "tokens": [text, ...], "width": of the residual stream, "walk": ..., "sampler": ... or null}
// It is a view of the page's selected token (selection.js).
// Events: select {index}; row {ask, of, layer, index} and what_if {ask, position, layer, expert, action}, whose answers the element
// gets as an event "answer" with what the server returned and the same `ask`. All text is set through textContent.
const root = element.querySelector('.walk'), palette = JSON.parse(root.dataset.colours), find = name => root.querySelector(name);
const text = find('.text'), stage = find('.stage'), detail = find('.detail'), tip = find('.tip');
let data = null, opened = null, parts = [], spans = [], chosen = null, zoom = 1, asked = 0;
const view = selection.follow({element: root, ids: () => data ? data.ids : [], show: mark, settle: index => trigger('select', {index})});

function make(parent, name, content, css) {
  const made = document.createElement(name);
  if (content !== undefined) made.textContent = content;
  if (css) made.className = css;
  if (parent) parent.append(made);
  return made;
}

// A new text's first picture shows its first layer with experts; which layers are open stays from token to token.
function receive() {
  if (!props.value) return;
  const next = JSON.parse(props.value), isNew = !data || data.ids.join() !== next.ids.join();
  if (!opened || data && data.walk.layers.length !== next.walk.layers.length) {
    const first = next.walk.layers.find(row => row.router) || next.walk.layers[0];
    opened = new Set([first.layer]);
  }
  data = next;
  if (isNew) drawText();
  drawPicture();
  tellChosen();
  view.update(data.position);
  if (view.position < 0) view.choose(data.position);  // the token selected elsewhere is none of this text
}

function drawText() {
  text.textContent = '';
  spans = data.tokens.map((token, index) => {
    const span = make(text, 'span', token, 'token');
    span.id = 'walk-token-' + index;
    span.setAttribute('role', 'option');
    span.addEventListener('click', () => view.choose(index));
    return span;
  });
}

function drawPicture() {
  const width = Math.floor(stage.clientWidth);
  if (!data || !width) return;  // hidden
  performance.mark('walk');
  const focused = stage.contains(document.activeElement) && document.activeElement.dataset.part;
  const picture = drawWalk(data, Math.max(300, width - 2), opened, palette);
  parts = picture.parts;
  picture.svg.style.width = 100 * zoom + '%';
  stage.replaceChildren(picture.svg);
  shade(null);
  const groups = stage.querySelectorAll('.part');
  groups[Math.min(focused || 0, groups.length - 1)].setAttribute('tabindex', 0);
  if (focused) groups[Math.min(focused, groups.length - 1)].focus({preventScroll: true});
  performance.measure('walk', 'walk');
}

// Outlines the selected token in the text; the picture follows once the server has answered.
function mark(position) {
  spans.forEach((span, index) => {
    span.classList.toggle('chosen', index === position);
    span.setAttribute('aria-selected', index === position);
  });
  const span = spans[position];
  if (!span) return;
  text.setAttribute('aria-activedescendant', span.id);
  text.scrollTop = span.offsetTop - text.offsetTop - text.clientHeight / 2;
}

// Tints the text by a head's weights, or not at all.
function shade(weights) {
  spans.forEach((span, index) => {
    span.style.background = weights && weights[index] ? `rgba(230,159,0,${(0.85 * Math.sqrt(weights[index])).toFixed(2)})` : '';
  });
}

function ask(event, request) {
  asked += 1;
  trigger(event, {ask: asked, ...request});
  find('.answer').textContent = 'Computing…';
}

function choose(index) {
  const part = parts[index];
  if (!part) return;
  if (part.kind === 'layer') {
    opened.has(part.layer) ? opened.delete(part.layer) : opened.add(part.layer);
    drawPicture();
  }
  chosen = {kind: part.kind, index};
  tell(part);
  detail.scrollTop = 0;
}

// What was chosen, of another token: the part of the same kind at the same place, if there still is one.
function tellChosen() {
  if (chosen && parts[chosen.index] && parts[chosen.index].kind === chosen.kind) tell(parts[chosen.index]);
}

function tell(part) {
  asked += 1;  // an answer that is still to come is about what was told before
  const definition = definitions[part.kind === 'layer' ? 'lens' : part.kind];
  detail.textContent = '';
  const close = make(detail, 'button', '×', 'close');
  close.setAttribute('aria-label', 'close what is told');
  close.addEventListener('click', () => { detail.textContent = ''; chosen = null; });
  make(detail, 'h4', part.title || (part.kind === 'layer' ? `Layer ${part.layer}: ` + definition.title.toLowerCase() : definition.title));
  make(detail, 'p', part.says || definition.says);
  if (!part.says) {
    make(detail, 'code', definition.formula);
    const link = make(make(detail, 'p', undefined, 'paper'), 'a', definition.paper);
    link.href = definition.url;
    link.target = '_blank';
    link.rel = 'noopener';
  }
  for (const lack of part.lacks || []) make(detail, 'p', lack);
  if (part.kind.startsWith('router')) offerWhatIf(part);
  make(detail, 'div', undefined, 'answer').setAttribute('aria-live', 'polite');
  if (part.facts.length) facts(part);
  if (part.values) list(part.values);
}

function facts(part) {
  const scroll = make(detail, 'div', undefined, 'facts'), table = make(scroll, 'table'), columns = part.facts[0].length > 3;
  scroll.tabIndex = 0;
  scroll.setAttribute('role', 'region');
  scroll.setAttribute('aria-label', 'the numbers in full');
  if (columns) {
    const line = make(make(table, 'thead'), 'tr');
    const names = part.kind === 'logits' ? ['word', 'logit', 'probability'] : ['expert', 'score', 'bias', 'weight'];
    for (const name of [...names, 'row']) make(line, 'th', name).scope = 'col';
  }
  const body = make(table, 'tbody');
  for (const [name, value, row, ...more] of part.facts) {
    const line = make(body, 'tr');
    make(line, 'th', name).scope = 'row';
    const numbers = part.kind === 'logits' ? [value, more[1]] : [value, ...more];
    for (const number of numbers) make(line, 'td', number == null ? '' : String(number));
    const cell = make(line, 'td');
    if (!row) continue;
    const button = make(cell, 'button', 'row');
    button.title = 'show this row of the matrix';
    button.setAttribute('aria-label', 'matrix row of ' + name);
    button.addEventListener('click', () => ask('row', row));
  }
}

function list(values) {
  const more = make(detail, 'details');
  make(more, 'summary', `all ${values.length} numbers`);
  make(more, 'p', values.join(', '), 'numbers').tabIndex = 0;
}

function offerWhatIf(part) {
  make(detail, 'h5', `What if, in layer ${part.layer}, for this token alone`);
  const buttons = make(detail, 'div', undefined, 'buttons');
  for (const {expert} of part.chosen) {
    const request = {position: data.position, layer: part.layer, expert};
    make(buttons, 'button', `expert ${expert} off`).addEventListener('click', () => ask('what_if', {...request, action: 'off'}));
    if (part.runner_up == null) continue;
    const label = `${part.runner_up} in place of ${expert}`;
    make(buttons, 'button', label).addEventListener('click', () => ask('what_if', {...request, action: 'runner-up'}));
  }
}

function answer(event) {
  const {ask, row, what_if: effect} = event.detail, place = find('.answer');
  if (ask !== asked || !place) return;  // of what is no longer shown
  place.textContent = '';
  if (row) {
    make(place, 'p', `${row.name}[${row.row}]: ${row.values.length} numbers, norm ${row.norm}`);
    const svg = node(place, 'svg', {viewBox: '0 0 280 60', class: 'row', role: 'img', 'aria-label': 'the row, one bar a number'});
    bars(svg, row.values, 0, 0, 280, 60, row.name);
    const more = make(place, 'details');
    make(more, 'summary', `all ${row.values.length} numbers`);
    make(more, 'p', row.values.join(', '), 'numbers').tabIndex = 0;
  }
  if (effect) showEffect(place, effect);
  place.scrollIntoView({block: 'nearest'});
}

function showEffect(place, effect) {
  const ran = effect.chosen.filter(one => one.weight).map(one => `${one.expert} (${percent(one.weight)})`).join(', ');
  make(place, 'p', `KL(before || after) ${effect.kl.toPrecision(4)} nats · experts that ran: ${ran || 'only the shared one'}`, 'kl').dataset.tip = effect.kl;
  const sides = make(place, 'div', undefined, 'sides');
  for (const side of ['before', 'after']) {
    const column = make(sides, 'div');
    make(column, 'h5', side);
    for (const word of effect[side]) wordBar(column, word.token, percent(word[side]), word[side], word[side]);
  }
  make(place, 'h5', 'moved most');
  for (const word of effect.moved) {
    const change = word.after - word.before;
    wordBar(place, word.token, `${percent(word.before)} → ${percent(word.after)}`, Math.abs(change), `${word.before} to ${word.after}`).classList.add(change > 0 ? 'more' : 'less');
  }
}

function wordBar(parent, word, label, share, full) {
  const line = make(parent, 'div', undefined, 'wordbar');
  line.style.setProperty('--share', 100 * share + '%');
  line.dataset.tip = full;
  make(line, 'bdi', word);
  make(line, 'span', label);
  return line;
}

function hover(event) {
  const target = event.target.closest('[data-tip], .cover'), part = event.target.closest('.part');
  const head = part && parts[part.dataset.part];
  shade(head && head.weights);
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip || '';
  if (target.numbers) {
    const box = target.getBoundingClientRect(), {name, values} = target.numbers;
    const index = Math.min(values.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * values.length)));
    tip.textContent = `${name}[${index}] = ${values[index]}`;
  }
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)) + 'px';
  tip.style.top = event.clientY + 16 + 'px';
}

function onKey(event) {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], move = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (event.target.closest('select, .detail') || !step && !move && !['Enter', ' '].includes(event.key)) return;
  const part = event.target.closest('.part');
  if (step) { selection.stop(); view.step(step); }
  else if (part && move) {
    const groups = [...stage.querySelectorAll('.part')], next = groups[groups.indexOf(part) + move];
    if (!next) return;
    part.setAttribute('tabindex', -1);
    next.setAttribute('tabindex', 0);
    next.focus();
    const told = parts[next.dataset.part];
    shade(told.weights);
  } else if (part && !move) choose(Number(part.dataset.part));
  else return;
  event.preventDefault();
}

function enlarge(factor) {
  if (!stage.firstChild) return;  // not drawn yet
  zoom = Math.min(4, Math.max(0.5, zoom * factor));
  stage.firstChild.style.width = 100 * zoom + '%';
}

root.addEventListener('keydown', onKey);
root.addEventListener('answer', answer);
root.addEventListener('pointermove', hover);
root.addEventListener('pointerleave', () => { tip.hidden = true; shade(null); });
stage.addEventListener('click', event => {
  const part = event.target.closest('.part');
  if (part) choose(Number(part.dataset.part));
});
find('.bar').prepend(selection.player(view));
find('.in').addEventListener('click', () => enlarge(1.25));
find('.out').addEventListener('click', () => enlarge(0.8));
find('.all').addEventListener('click', () => {
  if (!data) return;
  const all = data.walk.layers.map(row => row.layer);
  opened = new Set(opened.size === all.length ? [] : all);
  drawPicture();
});
new ResizeObserver(() => {
  const width = Math.floor(stage.clientWidth);
  if (width && width !== stage.drawnAt) { stage.drawnAt = width; drawPicture(); }
}).observe(stage);
watch('value', receive);
receive();
