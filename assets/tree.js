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

function row() {
  const line = document.createElement('div');
  line.setAttribute('role', 'listitem');
  for (const [tag, name] of [['button', 'label'], ['span', 'text'], ['span', 'note']]) part(line, tag, name);
  line.firstChild.addEventListener('click', () => {
    const {id, label, chosen} = line.data;
    if (chosen !== undefined) return trigger('select', {id});
    unfolded.delete(label) || unfolded.add(label);
    fold(line);
  });
  return line;
}

function fold(line) {
  const whole = unfolded.has(line.data.label);
  line.firstChild.setAttribute('aria-expanded', whole);
  line.classList.toggle('whole', whole);
}

function fill(line, data) {
  const [label, text, note] = line.children;
  line.data = data;
  line.className = 'chosen' in data ? 'row short' : 'row';
  line.style.setProperty('--depth', data.depth);
  label.textContent = data.label;
  note.textContent = data.note;
  text.replaceChildren();
  for (const [token, probability] of data.tokens) {
    const span = part(text, 'span', '', visible(token));
    span.title = 'probability ' + percent(probability);
    span.style.background = shade(1 - probability);
  }
  if ('chosen' in data) return label.setAttribute('aria-pressed', data.chosen);
  label.title = 'the whole text, or its first lines';
  fold(line);
}

// Rows stay as the texts grow: a button that is pressed just then, or has the focus, must not be replaced.
function draw() {
  const {rows} = JSON.parse(props.value || '{"rows": []}');
  rows.forEach((data, index) => fill(tree.children[index] ?? tree.appendChild(row()), data));
  while (tree.children.length > rows.length) tree.lastChild.remove();
}

watch('value', draw);
draw();
