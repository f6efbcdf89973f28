// The candidates of one token as a table; a click on a row asks for that token instead. Value: {"rows": [...]} as JSON,
// rows {id, text, model, sampler, removed_by, chosen}. All text goes in through textContent.
const body = element.querySelector('tbody');

function draw() {
  body.textContent = '';
  if (!props.value) return;
  for (const row of JSON.parse(props.value).rows) {
    const line = document.createElement('tr'), cells = [row.text, row.model, row.sampler, row.removed_by || ''];
    cells.forEach((text, index) => {
      const cell = document.createElement(index ? 'td' : 'th');
      if (index === 0) {
        cell.scope = 'row';
        const button = document.createElement('button');
        button.textContent = (row.chosen ? '▶ ' : '') + text;
        button.disabled = row.chosen;
        button.title = row.chosen ? 'the token that was drawn' : 'go on from here with this token instead';
        button.addEventListener('click', () => trigger('branch', {id: row.id}));
        cell.append(button);
      } else cell.textContent = text;
      line.append(cell);
    });
    body.append(line);
  }
}

watch('value', draw);
draw();
