// A table to search, and to sort by a click on a header. Value: JSON {headers, rows}, rows of strings and numbers; a value that
// begins with a number is sorted as one. All text is set through textContent.
const box = element.querySelector('.sorted'), search = box.querySelector('input'), table = box.querySelector('table');
let data = {headers: [], rows: []}, column = null, descending = false;

function compare(a, b) {
  const [x, y] = [a[column], b[column]], difference = parseFloat(x) - parseFloat(y);
  const order = Number.isNaN(difference) ? String(x).localeCompare(String(y)) : difference;
  return descending ? -order : order;
}

function sortBy(index) {
  descending = column === index ? !descending : true;
  column = index;
  draw();
}

function draw() {
  const head = document.createElement('tr'), words = search.value.toLowerCase().trim();
  data.headers.forEach((name, index) => {
    const cell = document.createElement('th'), button = document.createElement('button');
    cell.scope = 'col';
    cell.ariaSort = index !== column ? 'none' : descending ? 'descending' : 'ascending';
    button.textContent = name + (index !== column ? '' : descending ? ' ↓' : ' ↑');
    button.onclick = () => sortBy(index);
    cell.append(button);
    head.append(cell);
  });
  const rows = data.rows.filter(row => row.some(text => String(text).toLowerCase().includes(words)));
  if (column !== null) rows.sort(compare);
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map(row => {
    const line = document.createElement('tr');
    row.forEach((text, index) => {
      const cell = document.createElement(index ? 'td' : 'th');
      if (!index) cell.scope = 'row';
      cell.textContent = text;
      line.append(cell);
    });
    return line;
  }));
  box.querySelector('.found').textContent = `${rows.length} of ${data.rows.length} rows`;
}

function show() {
  data = JSON.parse(props.value || '{"headers": [], "rows": []}');
  column = null;
  draw();
}

search.oninput = draw;
watch('value', show);
show();
