// A text as tokens: coloured, with details on hover, selected by click or arrow keys. Value: append-only lines of JSON:
//   {"prompt": text, "ids": [id, ...], "experts": n, "layers": [1, 2], "depth": layers, "colours": [name, ...]}
//                                                                                  first: a new text; ids are the prompt's
//   {"i": id, "t": text, "p": probability, "r": rank, "h": entropy, "T": temperature, "e": {"1": [[expert, weight], ...]}}
//                                                                                  a token; "s", a sign, shows one without
//                                                                   text; within a character "t" is "" until its last token;
//                            "q", its probability after the sampler, and "d", the sampler that decided, if the model did not
//   {"mark": index}                                                                a bar before that token
//   {"from": index, "a": [percent, ...]}                                           the attention of that token
// All text is set through textContent, never through the template. `strip.text` and its event "text" tell what is drawn.
const strip = element.querySelector('.tokens'), chooser = element.querySelector('select');
const legend = element.querySelector('.legend'), detail = element.querySelector('.detail');
const copy = element.querySelector('.copy');
const palette = JSON.parse(element.querySelector('.strip').dataset.colours);
const first = element.querySelector('.strip').dataset.first;
let drawn = '', head = {ids: []}, ids = [], tokens = [], spans = [], selected = -1, marked = -1, attention = [], from = -1;
let order = 0;  // of the select events, which may overtake each other on their way to the server

const layer = () => chooser.value.startsWith('layer ') ? chooser.value.slice(6) : null;

// The samplers that decided some token, each with its place in the palette.
const deciders = () => [...new Set(tokens.map(token => token.d).filter(Boolean))];
const ink = colour => colour === 4 ? '#fff' : '#111';

// A sign that stands for `text`, which is copied in its place.
function mark(sign, text) {
  const span = document.createElement('span');
  span.textContent = sign;
  span.dataset.text = text;
  return span;
}

// Fills `span` with a text. A line end and a tab follow their signs, so that they act too.
function show(span, text) {
  text.split(HIDDEN).forEach((part, index) => {
    if (!(index % 2)) span.append(part);
    else if ('\n\t'.includes(part)) span.append(mark(sign(part), ''), part);
    else span.append(mark(sign(part), part));
  });
}

function describe(token, index) {
  const whole = tokens.slice(index).find(later => later.t || later.s);  // a token within a character shows with its last
  const name = !token.t && !token.s && whole ? 'part of ' : '';
  const parts = ['token ' + (index + 1) + ' ' + name + '“' + (whole ? whole.s || visible(whole.t).trim() : '') + '”'];
  if (token.p != null) parts.push('probability ' + percent(token.p) + (token.r ? ', rank ' + token.r : ''));
  if (token.q != null) parts.push('after the sampler ' + percent(token.q) + ', decided by ' + (token.d || 'model'));
  if (token.h != null) parts.push('entropy ' + token.h.toFixed(2) + ' nats');
  if (token.T != null) parts.push('temperature ' + token.T.toFixed(2));
  if (attention[index] != null) parts.push('gets ' + attention[index] + ' % of the attention');
  const experts = layer() && token.e && token.e[layer()];
  if (experts) parts.push('layer ' + layer() + ': ' + experts.map(([e, w]) => 'expert ' + e + ' ' + percent(w)).join(', '));
  return parts.join(' · ');
}

function paint(span, token, index) {
  span.style.background = span.style.color = '';
  const tint = strength => { span.style.background = shade(strength); };
  if (layer()) {
    const experts = token.e && token.e[layer()];
    if (experts) {
      const expert = experts[0][0] % palette.length;
      span.style.background = palette[expert];
      span.style.color = ink(expert);
    }
  } else if (chooser.value === 'decided by' && token.d) {
    const colour = deciders().indexOf(token.d) % palette.length;
    span.style.background = palette[colour];
    span.style.color = ink(colour);
  } else if (chooser.value === 'sampler probability' && token.q != null) tint(1 - token.q);
  else if (chooser.value === 'probability' && token.p != null) tint(1 - token.p);
  else if (chooser.value === 'entropy' && token.h != null) tint(token.h / 6);
  else if (chooser.value === 'temperature' && token.T != null) tint(token.T / 2);
  else if (chooser.value === 'attention') tint(1.4 * Math.sqrt((attention[index] || 0) / 100));
}

function drawLegend() {
  legend.textContent = '';
  const isDecided = chooser.value === 'decided by';
  if (layer() || isDecided) {
    (isDecided ? deciders() : [...Array(head.experts || 0).keys()]).forEach((name, index) => {
      const key = document.createElement('span');
      key.className = 'key';
      key.textContent = name;
      key.style.background = palette[index % palette.length];
      key.style.color = ink(index % palette.length);
      legend.append(key);
    });
    legend.prepend(isDecided ? 'added most of the probability; plain: the model ' : 'top expert ');
  } else {
    legend.textContent = {
      probability: 'darker: less likely under the model', 'sampler probability': 'darker: less likely after the sampler', entropy: 'darker: the model was less certain',
      temperature: 'darker: sampled at a higher temperature',
      attention: 'stronger: more attention from the outlined token', none: ''}[chooser.value] || '';
  }
}

function repaint() {
  spans.forEach((span, index) => { paint(span, tokens[index], index); span.title = describe(tokens[index], index); });
  tell();
  drawLegend();
}

// Tells of the selected token. A live region: what is set again, unchanged, may be read out again.
function tell() {
  const text = spans[selected] ? describe(tokens[selected], selected) : '';
  if (detail.textContent !== text) detail.textContent = text;
}

// Outlines the selected token, within the strip's own scrolling; none for an index below 0.
function choose(index) {
  if (spans[selected]) { spans[selected].classList.remove('chosen'); spans[selected].setAttribute('aria-selected', 'false'); }
  selected = index;
  const span = spans[index];
  tell();
  if (!span) { strip.removeAttribute('aria-activedescendant'); return; }
  span.classList.add('chosen');
  span.setAttribute('aria-selected', 'true');
  strip.setAttribute('aria-activedescendant', span.id);
  const top = span.offsetTop - strip.offsetTop, bottom = top + span.offsetHeight;
  if (top < strip.scrollTop) strip.scrollTop = top;
  else if (bottom > strip.scrollTop + strip.clientHeight) strip.scrollTop = bottom - strip.clientHeight;
}

function start(line) {
  head = {ids: [], ...line}; ids = [...head.ids]; tokens = []; spans = []; selected = marked = from = -1; attention = [];
  strip.textContent = '';
  if (line.prompt) {
    const span = document.createElement('span');
    span.className = 'prompt';
    show(span, line.prompt);
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
  if (token.s) span.append(mark(token.s, '')); else show(span, token.t);
  span.classList.toggle('part', !span.textContent);
  tokens.push(token); spans.push(span); ids.push(token.i);
  paint(span, token, index);
  for (let i = index; i === index || i >= 0 && spans[i].classList.contains('part'); i--) spans[i].title = describe(tokens[i], i);
  span.addEventListener('click', () => view.choose(head.ids.length + index));
  strip.append(span);
  if (index === marked) diverge(index);
}

function diverge(index) {
  marked = index;
  if (spans[index]) spans[index].classList.add('diverged');
}

function attend(record) {
  attention = record.a;
  from = record.from;
  repaint();
  showSelected(view.position);
}

function draw() {
  const value = props.value || '', grows = drawn && value.startsWith(drawn);
  let about = grows ? undefined : -1;  // the token that the server's answer is about
  if (!grows) { drawn = ''; strip.textContent = ''; ids = []; tokens = []; spans = []; selected = -1; }
  const end = value.lastIndexOf('\n') + 1, before = spans.length;
  const atEnd = drawn && strip.scrollHeight - strip.scrollTop - strip.clientHeight < 40;
  for (const line of value.slice(drawn.length, end).split('\n')) {
    if (!line) continue;
    const record = JSON.parse(line);
    if ('experts' in record) start(record); else if ('mark' in record) diverge(record.mark);
    else if ('from' in record) { attend(record); if (!grows) about = head.ids.length + record.from; } else add(record);
  }
  // Follows a text that grows, unless its reader has scrolled up; a whole one shows its beginning.
  if (atEnd && spans.length > before || !drawn && spans.length === 1) strip.scrollTop = strip.scrollHeight;
  drawn = value.slice(0, end);
  if (chooser.value === 'decided by') drawLegend();
  view.update(about);
  tell();  // also of a token that was selected before: the text that a part of a character shows with may have come
  strip.text = {head, ids, tokens};
  strip.dispatchEvent(new CustomEvent('text', {bubbles: true}));
}

function showSelected(position) {
  choose(position < head.ids.length ? from : position - head.ids.length);
}

const view = window.selection.follow({
  element: strip,
  ids: () => ids,
  first: () => head.ids.length,
  show: showSelected,
  settle: position => trigger('select', {index: position - head.ids.length, order: ++order}),
});
strip.view = view;

chooser.addEventListener('change', repaint);
strip.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!step || !spans.length) return;
  event.preventDefault();
  view.step(step);
});
strip.addEventListener('copy', event => {
  const copied = getSelection().getRangeAt(0).cloneContents();
  copied.querySelectorAll('[data-text]').forEach(sign => sign.replaceWith(sign.dataset.text));
  event.clipboardData.setData('text/plain', copied.textContent);
  event.preventDefault();
});
copy.addEventListener('click', () => {
  getSelection().selectAllChildren(strip);
  document.execCommand('copy');  // navigator.clipboard is missing where the page comes over plain HTTP
  copy.textContent = 'Copied';
  setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
});
watch('value', draw);
draw();
