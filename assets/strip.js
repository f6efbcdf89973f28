// A text as tokens: coloured, hovered, selected by click or arrow keys. Its value is append-only lines of JSON:
//   {"prompt": text, "experts": n, "layers": [1, 2]}      first, a new text
//   {"mark": index}                                       a bar before that token
//   {"from": index, "a": [percent, ...]}                  what that token looked at
//   {"t": text, "p": probability, "r": rank, "h": entropy, "T": temperature, "e": {"1": [[expert, weight], ...]}}
// All text goes in through textContent and never through the template.
const strip = element.querySelector('.tokens'), chooser = element.querySelector('select');
const legend = element.querySelector('.legend'), detail = element.querySelector('.detail');
const palette = JSON.parse(element.querySelector('.strip').dataset.colours);
const first = element.querySelector('.strip').dataset.first;
let seen = '', head = {}, tokens = [], spans = [], selected = -1, marked = -1, attended = [], telling = null;

const percent = value => value == null ? '–' : (100 * value).toFixed(value < 0.0995 ? 1 : 0) + ' %';
const layer = () => chooser.value.startsWith('layer ') ? chooser.value.slice(6) : null;
const visible = text => text.replace(/\n/g, '↵\n').replace(/\t/g, '⇥\t')
  .replace(/(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
           c => '⟨U+' + c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0') + '⟩');

function describe(token, index) {
  const parts = ['token ' + (index + 1) + ' “' + visible(token.t).trim() + '”'];
  if (token.p != null) parts.push('probability ' + percent(token.p) + (token.r ? ', rank ' + token.r : ''));
  if (token.h != null) parts.push('entropy ' + token.h.toFixed(2) + ' nats');
  if (token.T != null) parts.push('temperature ' + token.T.toFixed(2));
  if (attended[index] != null) parts.push('gets ' + attended[index] + ' % of the attention');
  const here = layer() && token.e && token.e[layer()];
  if (here) parts.push('layer ' + layer() + ': ' + here.map(([e, w]) => 'expert ' + e + ' ' + percent(w)).join(', '));
  return parts.join(' · ');
}

function paint(span, token, index) {
  span.style.background = span.style.color = '';
  const tint = strength => { span.style.background = 'rgba(230,159,0,' + (0.5 * Math.min(1, Math.max(0, strength))).toFixed(2) + ')'; };
  if (layer()) {
    const here = token.e && token.e[layer()];
    if (here) {
      const expert = here[0][0] % palette.length;
      span.style.background = palette[expert];
      span.style.color = expert === 4 ? '#fff' : '#111';
    }
  } else if (chooser.value === 'probability' && token.p != null) tint(1 - token.p);
  else if (chooser.value === 'entropy' && token.h != null) tint(token.h / 6);
  else if (chooser.value === 'temperature' && token.T != null) tint(token.T / 2);
  else if (chooser.value === 'attention') tint(1.4 * Math.sqrt((attended[index] || 0) / 100));
}

function explain() {
  legend.textContent = '';
  if (layer()) {
    for (let expert = 0; expert < (head.experts || 0); expert++) {
      const key = document.createElement('span');
      key.className = 'key';
      key.textContent = expert;
      key.style.background = palette[expert % palette.length];
      key.style.color = expert % palette.length === 4 ? '#fff' : '#111';
      legend.append(key);
    }
    legend.prepend('first expert ');
  } else {
    legend.textContent = {
      probability: 'darker: the model found it less likely', entropy: 'darker: the model was less sure',
      temperature: 'darker: drawn at a higher temperature',
      attention: 'stronger: looked at more by the outlined token', none: ''}[chooser.value] || '';
  }
}

function repaint() {
  spans.forEach((span, index) => { paint(span, tokens[index], index); span.title = describe(tokens[index], index); });
  explain();
}

// `wait` milliseconds later the page is told, of the last one alone; undefined: it is not.
function choose(index, wait) {
  if (index < 0 || index >= spans.length) return;
  if (spans[selected]) { spans[selected].classList.remove('chosen'); spans[selected].setAttribute('aria-selected', 'false'); }
  selected = index;
  spans[index].classList.add('chosen');
  spans[index].setAttribute('aria-selected', 'true');
  strip.setAttribute('aria-activedescendant', spans[index].id);
  detail.textContent = describe(tokens[index], index);
  if (wait === undefined) return;
  clearTimeout(telling);
  telling = setTimeout(() => trigger('select', {index: index}), wait);
}

function start(line) {
  head = line; tokens = []; spans = []; selected = marked = -1; attended = [];
  strip.textContent = ''; detail.textContent = '';
  if (line.prompt) {
    const span = document.createElement('span');
    span.className = 'prompt';
    span.textContent = visible(line.prompt);
    strip.append(span);
  }
  const wanted = chooser.options.length ? chooser.value : first, options = [...(line.colours || [])];
  for (const at of line.layers || []) options.push('layer ' + at);
  options.push('none');
  chooser.textContent = '';
  for (const name of options) {
    const option = document.createElement('option');
    option.value = name;
    option.textContent = name.startsWith('layer ') ? 'expert, ' + name : name;
    chooser.append(option);
  }
  const deepest = options.filter(name => name.startsWith('layer ')).pop();  // another model may lack the layer wanted
  chooser.value = options.includes(wanted) ? wanted : wanted.startsWith('layer ') && deepest || options[0];
  explain();
}

function add(token) {
  const span = document.createElement('span'), index = spans.length;
  span.className = 'token';
  span.id = strip.id + '-' + index;
  span.setAttribute('role', 'option');
  span.setAttribute('aria-selected', 'false');
  span.textContent = visible(token.t);
  tokens.push(token); spans.push(span);
  paint(span, token, index);
  span.title = describe(token, index);
  span.addEventListener('click', () => choose(index, 0));
  strip.append(span);
  if (index === marked) mark(index);
}

function mark(index) {
  marked = index;
  if (spans[index]) spans[index].classList.add('diverged');
}

function attend(record) {
  attended = record.a;
  repaint();
  choose(record.from);
}

function draw() {
  const value = props.value || '';
  if (!seen || !value.startsWith(seen)) { seen = ''; strip.textContent = ''; tokens = []; spans = []; selected = -1; }
  const end = value.lastIndexOf('\n') + 1;
  for (const line of value.slice(seen.length, end).split('\n')) {
    if (!line) continue;
    const record = JSON.parse(line);
    if ('experts' in record) start(record); else if ('mark' in record) mark(record.mark);
    else if ('from' in record) attend(record); else add(record);
  }
  seen = value.slice(0, end);
}

chooser.addEventListener('change', repaint);
strip.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!step || !spans.length) return;
  event.preventDefault();
  choose(Math.min(spans.length - 1, Math.max(0, selected + step)), 100);  // keys come faster than answers
  spans[selected].scrollIntoView({block: 'nearest'});
});
watch('value', draw);
draw();
