// Texts as a tree, one row for the tokens of each part. Value: JSON {"rows": [...]}, each row {"depth", "label", "note",
// "tokens": [[text, probability], ...], "chosen", "id"}. The button with its label selects a row that has "chosen", true or
// false; without it unfolds the text. All text is set through textContent.
const tree = element.querySelector('.tree');
const unfolded = new Set();  // labels

function part(line, tag, name, text = '') {
  const child = document.createElement(tag);
  child.className = name;
  child.textContent = text;
  line.append(child);
  return child;
}

function row(data) {
  const line = document.createElement('div');
  line.className = 'chosen' in data ? 'row short' : 'row';
  line.style.setProperty('--depth', data.depth);
  line.setAttribute('role', 'listitem');
  const label = part(line, 'button', 'label', data.label), text = part(line, 'span', 'text');
  part(line, 'span', 'note', data.note);
  for (const [token, probability] of data.tokens) {
    const span = part(text, 'span', '', visible(token));
    span.title = 'probability ' + percent(probability);
    span.style.background = shade(1 - probability);
  }
  if ('chosen' in data) {
    label.setAttribute('aria-pressed', data.chosen);
    label.addEventListener('click', () => trigger('select', {id: data.id}));
    return line;
  }
  const fold = () => {
    label.setAttribute('aria-expanded', unfolded.has(data.label));
    line.classList.toggle('whole', unfolded.has(data.label));
  };
  label.title = 'the whole text, or its first lines';
  label.addEventListener('click', () => { unfolded.delete(data.label) || unfolded.add(data.label); fold(); });
  fold();
  return line;
}

function draw() {
  tree.replaceChildren(...JSON.parse(props.value || '{"rows": []}').rows.map(row));
}

watch('value', draw);
draw();
