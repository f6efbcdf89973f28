// A text as tokens: coloured, with details on hover, selected by click or arrow keys. Value: append-only lines of JSON:
//   {"prompt": text, "experts": n, "layers": [1, 2], "colours": [name, ...]}       first: a new text
//   {"t": text, "p": probability, "r": rank, "h": entropy, "T": temperature, "e": {"1": [[expert, weight], ...]}}  a token
//   {"mark": index}                                                                a bar before that token
//   {"from": index, "a": [percent, ...]}                                           the attention of that token
// All text is set through textContent, never through the template.
const strip = element.querySelector('.tokens'), chooser = element.querySelector('select');
const legend = element.querySelector('.legend'), detail = element.querySelector('.detail');
const palette = JSON.parse(element.querySelector('.strip').dataset.colours);
const first = element.querySelector('.strip').dataset.first;
let drawn = '', head = {}, tokens = [], spans = [], selected = -1, marked = -1, attention = [], selectTimer = null;

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
  if (attention[index] != null) parts.push('gets ' + attention[index] + ' % of the attention');
  const experts = layer() && token.e && token.e[layer()];
  if (experts) parts.push('layer ' + layer() + ': ' + experts.map(([e, w]) => 'expert ' + e + ' ' + percent(w)).join(', '));
  return parts.join(' · ');
}

function paint(span, token, index) {
  span.style.background = span.style.color = '';
  const tint = strength => { span.style.background = 'rgba(230,159,0,' + (0.5 * Math.min(1, Math.max(0, strength))).toFixed(2) + ')'; };
  if (layer()) {
    const experts = token.e && token.e[layer()];
    if (experts) {
      const expert = experts[0][0] % palette.length;
      span.style.background = palette[expert];
      span.style.color = expert === 4 ? '#fff' : '#111';
    }
  } else if (chooser.value === 'probability' && token.p != null) tint(1 - token.p);
  else if (chooser.value === 'entropy' && token.h != null) tint(token.h / 6);
  else if (chooser.value === 'temperature' && token.T != null) tint(token.T / 2);
  else if (chooser.value === 'attention') tint(1.4 * Math.sqrt((attention[index] || 0) / 100));
}

function drawLegend() {
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
    legend.prepend('top expert ');
  } else {
    legend.textContent = {
      probability: 'darker: less likely under the model', entropy: 'darker: the model was less certain',
      temperature: 'darker: sampled at a higher temperature',
      attention: 'stronger: more attention from the outlined token', none: ''}[chooser.value] || '';
  }
}

function repaint() {
  spans.forEach((span, index) => { paint(span, tokens[index], index); span.title = describe(tokens[index], index); });
  drawLegend();
}

// Sends the select event after `wait` milliseconds, only for the last of several; sends none without `wait`.
function choose(index, wait) {
  if (index < 0 || index >= spans.length) return;
  if (spans[selected]) { spans[selected].classList.remove('chosen'); spans[selected].setAttribute('aria-selected', 'false'); }
  selected = index;
  spans[index].classList.add('chosen');
  spans[index].setAttribute('aria-selected', 'true');
  strip.setAttribute('aria-activedescendant', spans[index].id);
  detail.textContent = describe(tokens[index], index);
  if (wait === undefined) return;
  clearTimeout(selectTimer);
  selectTimer = setTimeout(() => trigger('select', {index: index}), wait);
}

function start(line) {
  head = line; tokens = []; spans = []; selected = marked = -1; attention = [];
  strip.textContent = ''; detail.textContent = '';
  if (line.prompt) {
    const span = document.createElement('span');
    span.className = 'prompt';
    span.textContent = visible(line.prompt);
    strip.append(span);
  }
  const previous = chooser.options.length ? chooser.value : first;
  const options = [...(line.colours || []), ...(line.layers || []).map(layer => 'layer ' + layer), 'none'];
  chooser.textContent = '';
  for (const name of options) {
    const option = document.createElement('option');
    option.value = name;
    option.textContent = name.startsWith('layer ') ? 'expert, ' + name : name;
    chooser.append(option);
  }
  const lastLayer = options.filter(name => name.startsWith('layer ')).pop();  // another model may lack the previous layer
  chooser.value = options.includes(previous) ? previous : previous.startsWith('layer ') && lastLayer || options[0];
  drawLegend();
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
  attention = record.a;
  repaint();
  choose(record.from);
}

function draw() {
  const value = props.value || '';
  if (!drawn || !value.startsWith(drawn)) { drawn = ''; strip.textContent = ''; tokens = []; spans = []; selected = -1; }
  const end = value.lastIndexOf('\n') + 1;
  for (const line of value.slice(drawn.length, end).split('\n')) {
    if (!line) continue;
    const record = JSON.parse(line);
    if ('experts' in record) start(record); else if ('mark' in record) mark(record.mark);
    else if ('from' in record) attend(record); else add(record);
  }
  drawn = value.slice(0, end);
}

chooser.addEventListener('change', repaint);
strip.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!step || !spans.length) return;
  event.preventDefault();
  choose(Math.min(spans.length - 1, Math.max(0, selected + step)), 100);  // keys repeat faster than the server answers
  spans[selected].scrollIntoView({block: 'nearest'});
});
watch('value', draw);
draw();
