// A text as a plain table, a row a token; the first cell heads its row. Value: rows of texts as JSON. All text goes in
// through textContent.
const body = element.querySelector('tbody');

function draw() {
  body.textContent = '';
  for (const row of JSON.parse(props.value || '[]')) {
    const line = document.createElement('tr');
    row.forEach((text, index) => {
      const cell = document.createElement(index ? 'td' : 'th');
      if (!index) cell.scope = 'row';
      cell.textContent = text;
      line.append(cell);
    });
    body.append(line);
  }
}

watch('value', draw);
draw();
