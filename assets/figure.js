// Downloads the data of a plotly figure as NAME.csv, one row per mark. `plot` is the value of a gr.Plot.
(plot, name) => {
  const TYPES = {i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array,
                 f4: Float32Array, f8: Float64Array};

  // A list, or plotly's binary form of one: {dtype, bdata (base64), shape ("rows, columns" of a matrix)}.
  function list(values) {
    if (!values || !values.bdata) return values || [];
    const bytes = Uint8Array.from(atob(values.bdata), c => c.charCodeAt(0));
    const flat = [...new TYPES[values.dtype](bytes.buffer)];
    if (!values.shape) return flat;
    const width = Number(String(values.shape).split(',')[1]);
    return Array.from({length: flat.length / width}, (_, row) => flat.slice(row * width, (row + 1) * width));
  }

  function* rows(trace) {
    const series = trace.meta || trace.name;
    if (trace.type === 'sankey') {
      const labels = list(trace.node.label), link = trace.link;
      const source = list(link.source), target = list(link.target), value = list(link.value);
      for (let i = 0; i < value.length; i++) yield {series, source: labels[source[i]], target: labels[target[i]], value: value[i]};
    } else if (trace.type === 'heatmap') {
      const x = list(trace.x), y = list(trace.y), z = list(trace.z), text = list(trace.customdata || trace.text);
      for (let r = 0; r < z.length; r++)
        for (let c = 0; c < z[r].length; c++)
          yield {series, x: x[c] ?? c, y: y[r] ?? r, value: z[r][c], text: text[r] && text[r][c]};
    } else {
      const x = list(trace.x), y = list(trace.y), text = list(trace.customdata);
      for (let i = 0; i < y.length; i++) yield {series, x: x[i] ?? i, y: y[i], text: text[i]};
    }
  }

  // Undoes the escapes of plotly labels. An apostrophe keeps a spreadsheet from reading a text as a formula.
  function field(value) {
    if (value == null || Number.isNaN(value)) return '';
    if (typeof value !== 'string') return String(value);
    value = value.replace(/<br>/g, ' ').replace(/&lt;/g, '<').replace(/&gt;/g, '>').replace(/&amp;/g, '&');
    if (/^[=+\-@\t\r]/.test(value)) value = "'" + value;
    return /[",\r\n]/.test(value) ? '"' + value.replace(/"/g, '""') + '"' : value;
  }

  const all = JSON.parse(plot.plot).data.flatMap(trace => [...rows(trace)]);
  const columns = ['series', 'source', 'target', 'x', 'y', 'value', 'text'].filter(c => all.some(row => row[c] != null));
  const lines = [columns, ...all.map(row => columns.map(column => row[column]))].map(line => line.map(field).join(','));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines.join('\r\n') + '\r\n'], {type: 'text/csv'}));
  link.download = name + '.csv';
  link.click();
  URL.revokeObjectURL(link.href);
}
