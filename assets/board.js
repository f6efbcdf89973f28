// The live board: a lamp for each expert of each layer, lit by the tokens of the strip named in data-strip as they are routed.
// It shows the newest token while a text grows, and the selected one once there is one. Brightness is the expert's weight,
// relative to the layer's strongest; the tokens before fade; the bar under a lamp is its load up to this token, where the tick
// is an even load; threads join a token's experts of one layer to those of the next. All text is set through textContent.
const root = element.querySelector('.board'), canvas = root.querySelector('canvas'), pen = canvas.getContext('2d');
const heading = root.querySelector('.now'), info = root.querySelector('.info'), tip = root.querySelector('.tip');
const palette = JSON.parse(root.dataset.colours), reduced = matchMedia('(prefers-reduced-motion: reduce)');
const GROWING_FRAME_MS = 50;  // while a text grows the engine needs the processor: fewer frames are drawn
const TRAIL = 10, FADE = 0.68, EASE_MS = 90, CATCH_UP_MS = 160, MAX_JUMP = 40, LEFT = 26, RIGHT = 8, TOP = 6, BOTTOM = 16, MAX_CHIPS = 400;
const HELP = 'A row is a layer, a lamp an expert. Brighter: a larger weight for this token. Bar: its load so far; the tick is ' +
  'an even load. Click an expert.';
const HELP_SMALL = 'A row is a layer, a cell an expert. Bright: chosen for this token; the tokens before fade. Dim light: its load ' +
  'so far. Click an expert.';
const DENSE = 'This model is dense: every token runs through all weights of every layer. There are no experts to light.';

let text = {head: {ids: [], layers: [], experts: 0, depth: 0}, ids: [], tokens: []};
let shown = -1, counted = 0, counts = new Uint32Array(0);  // the token shown; how many tokens `counts` holds, cell by cell
let target = new Float32Array(0), glow = new Float32Array(0);  // brightness of each cell, and as drawn on the way there
let grid = null, cursor = null, open = null, listed = 0, frame = 0, previous = 0, grown = -Infinity;

const experts = () => text.head.experts;
const chosen = (token, layer) => token && token.e && token.e[layer] || [];
const goal = () => view.position >= text.head.ids.length ? view.position - text.head.ids.length : text.tokens.length - 1;
const name = ({t, s}) => s || t.replace(/\n/g, '↵').replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '⟨⟩');
const request = () => { if (!frame) { previous = performance.now(); frame = requestAnimationFrame(tick); } };

// Has the board show one token: counts the load up to it and sets how bright each cell is to be.
function light(index) {
  const {layers} = text.head, size = layers.length * experts();
  if (counts.length !== size) { counts = new Uint32Array(size); glow = new Float32Array(size); target = new Float32Array(size); counted = 0; }
  if (index + 1 < counted) { counts.fill(0); counted = 0; }
  for (; counted <= index; counted++)
    layers.forEach((layer, row) => { for (const [expert] of chosen(text.tokens[counted], layer)) counts[row * experts() + expert]++; });
  target.fill(0);
  for (let age = TRAIL - 1; age >= 0; age--)
    layers.forEach((layer, row) => {
      const pairs = chosen(text.tokens[index - age], layer);
      for (const [expert, weight] of pairs) {
        const cell = row * experts() + expert, level = Math.sqrt(weight / pairs[0][1]) * (age ? 0.7 * FADE ** age : 1);
        target[cell] = Math.max(target[cell], level);
      }
    });
  shown = index;
  const token = text.tokens[index];
  heading.textContent = token ? 'token ' + (index + 1) + ' ' : '';
  if (token) {
    const word = document.createElement('b');
    word.textContent = name(token);
    heading.append(word);
  }
}

function tick(now) {
  if (now - previous < GROWING_FRAME_MS && now - grown < 400) { frame = requestAnimationFrame(tick); return; }
  const passed = Math.min(100, now - previous), to = goal();
  frame = 0;
  previous = now;
  if (shown < to && view.position < 0 && !reduced.matches)
    light(Math.max(to - MAX_JUMP, Math.min(to, shown + Math.ceil((to - shown) * passed / CATCH_UP_MS))));
  else if (shown !== to) light(to);
  const ease = reduced.matches ? 1 : 1 - Math.exp(-passed / EASE_MS);
  let moves = shown < to;
  for (let cell = 0; cell < glow.length; cell++) {
    const gap = target[cell] - glow[cell];
    if (Math.abs(gap) < 0.01) glow[cell] = target[cell]; else { glow[cell] += gap * ease; moves = true; }
  }
  paint();
  if (moves) frame = requestAnimationFrame(tick);
}

function measure() {
  const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const rows = Math.max(1, text.head.depth || 0, ...text.head.layers.map(layer => layer + 1));
  const cell = (width - LEFT - RIGHT) / Math.max(1, experts()), row = (height - TOP - BOTTOM) / rows;
  return {width, height, rows, cell, row, large: Math.min(cell, row) >= 16, radius: Math.min(cell * 0.36, row * 0.3, 15)};
}

const centre = (layer, expert) => [LEFT + (expert + 0.5) * grid.cell, TOP + (layer + (grid.large ? 0.42 : 0.5)) * grid.row];

function paint() {
  if (!canvas.clientWidth) return;  // its tab is hidden
  grid = measure();
  pen.clearRect(0, 0, grid.width, grid.height);
  pen.font = '11px system-ui, sans-serif';
  pen.textBaseline = 'middle';
  pen.fillStyle = '#9fb0c8';
  const every = Math.ceil(13 / grid.row), nth = Math.ceil(22 / grid.cell);
  pen.textAlign = 'left';
  for (let layer = 0; layer < grid.rows; layer += every) pen.fillText(layer, 4, centre(layer, 0)[1]);
  pen.textAlign = 'center';
  for (let expert = 0; expert < experts(); expert += nth) pen.fillText(expert, centre(0, expert)[0], grid.height - 6);
  for (let layer = 0; layer < grid.rows; layer++) if (!text.head.layers.includes(layer)) paintDense(layer);
  paintThreads();
  text.head.layers.forEach((layer, row) => { for (let expert = 0; expert < experts(); expert++) paintCell(layer, row, expert); });
  for (const [cell, colour] of [[open, '#ffffff'], [cursor, '#9fb0c8']]) if (cell) ring(cell, colour);
}

function paintDense(layer) {
  const [, y] = centre(layer, 0), height = Math.max(2, Math.min(18, grid.row * 0.55));
  pen.fillStyle = shown < 0 ? '#1d2a42' : '#33435f';
  pen.beginPath();
  pen.roundRect(LEFT, y - height / 2, grid.width - LEFT - RIGHT, height, height / 2);
  pen.fill();
  if (height < 14) return;
  pen.fillStyle = '#d5deec';
  pen.fillText('dense: the same weights for every token', (LEFT + grid.width - RIGHT) / 2, y);
}

function paintThreads() {
  const {layers} = text.head, token = text.tokens[shown];
  if (!grid.large) return;
  pen.lineCap = 'round';
  for (let row = 0; row + 1 < layers.length; row++) {
    const [from, to] = [layers[row], layers[row + 1]].map(layer => chosen(token, layer).slice(0, 3));
    for (const [a, weightA] of from) for (const [b, weightB] of to) {
      const [x1, y1] = centre(layers[row], a), [x2, y2] = centre(layers[row + 1], b), half = (y2 - y1) / 2;
      const shade = pen.createLinearGradient(x1, y1, x2, y2);
      shade.addColorStop(0, palette[a % palette.length]);
      shade.addColorStop(1, palette[b % palette.length]);
      pen.strokeStyle = shade;
      pen.globalAlpha = 0.55;
      pen.lineWidth = 0.5 + 4 * Math.sqrt(weightA / from[0][1] * weightB / to[0][1]) ** 2;
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.bezierCurveTo(x1, y1 + half, x2, y2 - half, x2, y2);
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
}

// The load of a cell up to the token shown, 1 if it is even.
function load(row, expert) {
  const layer = text.head.layers[row], width = chosen(text.tokens[shown], layer).length;
  return width ? counts[row * experts() + expert] * experts() / (width * (shown + 1)) : 0;
}

function paintCell(layer, row, expert) {
  const [x, y] = centre(layer, expert), bright = glow[row * experts() + expert], share = load(row, expert);
  pen.fillStyle = palette[expert % palette.length];
  if (!grid.large) {  // too small for a lamp and a bar: the load is the dim light under it
    const width = Math.max(1, grid.cell - 1), height = Math.max(1, grid.row - 1);
    pen.globalAlpha = Math.min(1, 0.06 + 0.07 * Math.min(3, share) + 0.9 * bright);
    pen.fillRect(x - width / 2, y - height / 2, width, height);
    pen.globalAlpha = 1;
    return;
  }
  const {radius} = grid, disc = (size, alpha) => { pen.globalAlpha = alpha; pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill(); };
  if (bright > 0.03) { disc(radius * 1.75, 0.12 * bright); disc(radius * 1.35, 0.2 * bright); }
  pen.fillStyle = '#16213a';
  disc(radius, 1);
  pen.fillStyle = palette[expert % palette.length];
  disc(radius, 0.16 + 0.84 * bright);
  pen.fillStyle = '#ffffff';
  disc(radius * 0.5, 0.6 * bright ** 3);
  const width = Math.min(grid.cell * 0.7, 44), bar = y + grid.row * 0.42, left = x - width / 2;
  pen.globalAlpha = 1;
  pen.fillStyle = '#24324d';
  pen.fillRect(left, bar, width, 3);
  pen.fillStyle = palette[expert % palette.length];
  pen.fillRect(left, bar, width * Math.min(1, share / 3), 3);
  pen.fillStyle = '#d5deec';
  pen.fillRect(left + width / 3 - 0.5, bar - 2, 1, 7);
}

function ring({row, expert}, colour) {
  const [x, y] = centre(text.head.layers[row], expert), size = grid.large ? grid.radius + 4 : Math.max(4, grid.cell / 2 + 2);
  pen.strokeStyle = colour;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(x, y, size, 0, 7);
  pen.stroke();
}

// The cell at a pointer event, null for none.
function cellAt(event) {
  const box = canvas.getBoundingClientRect(), row = text.head.layers.indexOf(Math.floor((event.clientY - box.top - TOP) / grid.row));
  const expert = Math.floor((event.clientX - box.left - LEFT) / grid.cell);
  return row >= 0 && expert >= 0 && expert < experts() ? {row, expert} : null;
}

function describe({row, expert}) {
  const layer = text.head.layers[row], pairs = chosen(text.tokens[shown], layer), sum = pairs.reduce((all, [, weight]) => all + weight, 0);
  const pair = pairs.find(([other]) => other === expert);
  return 'layer ' + layer + ', expert ' + expert + ': ' + (pair ? 'weight ' + (100 * pair[1] / sum).toFixed(0) + ' % · ' : '') +
    counts[row * experts() + expert] + ' of ' + (shown + 1) + ' tokens, ' + load(row, expert).toFixed(1) + ' × an even load';
}

function point(cell) {
  cursor = cell;
  tip.hidden = !cell;
  if (cell) {
    const [x, y] = centre(text.head.layers[cell.row], cell.expert), below = y < grid.height / 2;
    tip.textContent = describe(cell);
    tip.style.left = Math.max(0, Math.min(grid.width - tip.offsetWidth, x - tip.offsetWidth / 2)) + 'px';
    tip.style.top = canvas.offsetTop + y + (below ? grid.radius + 12 : -grid.radius - 34) + 'px';
  }
  request();
}

// Lists the tokens that the open expert took, those that are new since the last time.
function list() {
  const chips = info.querySelector('.chips'), layer = text.head.layers[open.row];
  for (; listed < text.tokens.length && chips.childElementCount < MAX_CHIPS; listed++) {
    const index = listed, token = text.tokens[index], pair = chosen(token, layer).find(([expert]) => expert === open.expert);
    if (!pair) continue;
    const chip = document.createElement('button');
    chip.textContent = name(token) || '…';
    chip.title = 'token ' + (index + 1) + ', weight ' + pair[1].toFixed(2);
    chip.addEventListener('click', () => view.choose(text.head.ids.length + index));
    chips.append(chip);
  }
  const took = text.tokens.filter(token => chosen(token, layer).some(([expert]) => expert === open.expert)).length;
  info.querySelector('.took').textContent = 'Layer ' + layer + ', expert ' + open.expert + ' took ' + took + ' of ' +
    text.tokens.length + ' tokens. To switch it off: Intervene, ablate, expert ' + open.expert + ' at layer ' + layer + '.';
}

function show(cell) {
  open = cell;
  listed = 0;
  info.textContent = '';
  if (!cell) {
    info.textContent = !text.head.layers.length ? DENSE : measure().large ? HELP : HELP_SMALL;
  } else {
    const took = document.createElement('p'), chips = document.createElement('div'), close = document.createElement('button');
    took.className = 'took';
    chips.className = 'chips';
    close.className = 'close';
    close.textContent = '✕';
    close.setAttribute('aria-label', 'close the list');
    close.addEventListener('click', () => { show(null); canvas.focus(); });
    info.append(close, took, chips);
    list();
  }
  request();
}

function read(strip) {
  const fresh = text.tokens !== strip.text.tokens;
  text = strip.text;
  if (fresh) {
    shown = -1;
    counts = new Uint32Array(0);
    if (cursor) point(null);
    show(null);
  } else {
    grown = performance.now();
    if (open) list();
  }
  view.update();
  request();
}

canvas.addEventListener('pointermove', event => point(cellAt(event)));
canvas.addEventListener('pointerleave', () => point(null));
canvas.addEventListener('blur', () => point(null));
canvas.addEventListener('click', event => { const cell = cellAt(event); if (cell) show(cell); });
canvas.addEventListener('keydown', event => {
  const {layers} = text.head, [down, right] = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key] || [];
  if (!layers.length) return;
  if (down === undefined && !['Enter', ' ', 'Escape'].includes(event.key)) return;
  event.preventDefault();
  const cell = cursor || {row: 0, expert: 0};
  if (event.key === 'Escape') show(null);
  else if (down === undefined) show(cell);
  else point({row: Math.min(layers.length - 1, Math.max(0, cell.row + (cursor ? down : 0))),
              expert: Math.min(experts() - 1, Math.max(0, cell.expert + (cursor ? right : 0)))});
});

const view = window.selection.follow({element: canvas, ids: () => text.ids, first: () => text.head.ids.length, show: request});
root.querySelector('.top').append(window.selection.player(view));
new ResizeObserver(request).observe(canvas);
document.addEventListener('text', event => { if (event.target.id === root.dataset.strip + '-tokens') read(event.target); });
const strip = document.getElementById(root.dataset.strip + '-tokens');
if (strip?.text) read(strip); else show(null);
