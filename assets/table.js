// A text as a plain table, one row per token; the first cell is the row's header. Value: JSON, a list of rows of strings.
// All text is set through textContent.
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
