// The candidates of one token as a table. A click on a row branches to that token. Value: JSON {"index": of the token,
// "rows": [...]}, each row {id, text, model, sampler, removed_by, chosen}. All text is set through textContent.
const body = element.querySelector('tbody');

function draw() {
  body.textContent = '';
  if (!props.value) return;
  const {index: position, rows} = JSON.parse(props.value);
  for (const row of rows) {
    const line = document.createElement('tr');
    [row.text, row.model, row.sampler, row.removed_by || ''].forEach((text, index) => {
      const cell = document.createElement(index ? 'td' : 'th');
      if (index === 0) {
        cell.scope = 'row';
        const button = document.createElement('button');
        button.textContent = (row.chosen ? '▶ ' : '') + text;
        button.disabled = row.chosen;
        button.title = row.chosen ? 'the sampled token' : 'continue from here with this token instead';
        button.addEventListener('click', () => trigger('branch', {index: position, id: row.id}));
        cell.append(button);
      } else cell.textContent = text;
      line.append(cell);
    });
    body.append(line);
  }
}

watch('value', draw);
draw();
