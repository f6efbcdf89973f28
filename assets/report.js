// Draws a report's figures and tables when they come into view: those of a closed layer cost nothing.
const {figures, tables} = JSON.parse(document.getElementById('data').textContent);

function drawFigure(place) {
  const {data, layout} = figures[place.dataset.figure];
  const colour = getComputedStyle(document.body).color;
  const all = JSON.parse(JSON.stringify(data, (key, value) => key === 'textfont' ? {...value, color: colour} : value));
  Plotly.newPlot(place, all, {...layout, font: {...layout.font, color: colour}},
                 {responsive: true, displaylogo: false, modeBarButtonsToRemove: ['toImage', 'sendDataToCloud']});
}

const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
  seen.unobserve(entry.target);
  if (entry.target.dataset.figure) drawFigure(entry.target);
  else drawTable(entry.target, {value: JSON.stringify(tables[entry.target.dataset.table])}, () => {});
}), {rootMargin: '300px'});
document.querySelectorAll('[data-figure], [data-table]').forEach(place => seen.observe(place));
document.querySelectorAll('[data-csv]').forEach(button => {
  button.onclick = () => downloadCsv({plot: JSON.stringify(figures[button.dataset.csv])}, button.dataset.csv);
});
