// The picture of one token's walk, as SVG: `drawWalk(data, width, opened, palette)` returns {svg, parts}. What can be chosen is a
// "part": a group with a number, and in `parts` what is told about it, {kind, label, facts: [[name, value, matrix row]], ...}.
// All text is set through textContent.
const MAX_LINES = 14, MIN_WEIGHT = 0.01;  // of a head's fan
const LEFT = 46, SPINE = 20;  // where parts begin, and the residual stream

function node(parent, name, attributes = {}, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const percent = value => value > 0 && value < 0.0005 ? '< 0.1 %' : (100 * value).toFixed(value < 0.0995 ? 1 : 0) + ' %';
const short = value => value == null ? '?' : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : value.toPrecision(3);
const cut = (text, pixels) => text.length * 7 <= pixels ? text : text.slice(0, Math.max(1, Math.floor(pixels / 7) - 1)) + '…';

function drawWalk(data, width, opened, palette) {
  const walk = data.walk, right = width - 6, inner = right - LEFT, wide = inner > 520, parts = [];
  const svg = node(null, 'svg', {role: 'group', 'aria-label': `the walk of token ${walk.position + 1} through the model`});
  const spine = node(svg, 'g', {class: 'spine'});
  const norms = walk.layers.map(row => row.output_norm || 0), largest = Math.log1p(Math.max(1, ...norms));
  const ink = expert => expert % palette.length === 4 ? '#fff' : '#111';
  let y = 4, from = 4, norm = walk.embedding.norm, current = null;

  // A group that can be chosen; what follows is drawn into it.
  function part(kind, label, x, top, w, h, facts, more = {}) {
    const group = node(svg, 'g', {class: 'part ' + kind.split(' ')[0], role: 'button', tabindex: -1, 'aria-label': label, 'data-part': parts.length});
    node(group, 'rect', {class: 'box', x, y: top, width: w, height: h, rx: 5});
    parts.push({kind, label, facts, ...more});
    return group;
  }
  const write = (group, x, at, text, css = '', more = {}) => node(group, 'text', {x, y: at, class: css, ...more}, text);

  // The residual stream down to here, as wide as its norm's logarithm.
  function stream(to, next) {
    const w = norm == null ? 4 : 3 + 13 * Math.log1p(norm) / largest;
    node(spine, 'rect', {x: SPINE - w / 2, y: from, width: w, height: Math.max(0, to - from), 'data-tip': 'norm of the residual stream: ' + norm});
    from = to;
    norm = next;
  }

  function lens(group, entries, x, top, w) {
    const cell = w / entries.length;
    entries.forEach((entry, index) => {
      const clip = node(group, 'svg', {x: x + index * cell, y: top, width: cell - 4, height: 22, 'data-tip': `“${entry.token}”: ${entry.probability}`});
      node(clip, 'rect', {class: 'groove', width: cell - 4, height: 22, rx: 3});
      node(clip, 'rect', {class: 'level', width: Math.max(1, entry.probability * (cell - 4)), height: 22, rx: 3});
      const share = percent(entry.probability);
      write(clip, 5, 15, cut(entry.token, cell - 18 - 7 * share.length), 'word');
      write(clip, cell - 8, 15, share, 'quiet', {'text-anchor': 'end'});
    });
  }
  const words = entries => entries.map(entry => [`“${entry.token}”`, entry.probability, {of: 'output', index: entry.id}]);
  const said = entries => entries.map(entry => `${entry.token} ${percent(entry.probability)}`).join(', ');

  // A vector as one bar a number, upwards if positive.
  function vector(name, kind, values, x, top, w, label) {
    const group = part(kind, `${label}, norm ${short(values.norm)}`, x, top, w, 48,
      [['norm', values.norm], ['width', values.width]], {values: values.values});
    write(group, x + 8, top + 15, label, 'name');
    write(group, x + w - 8, top + 15, 'norm ' + short(values.norm), 'quiet', {'text-anchor': 'end'});
    bars(group, values.values, x + 8, top + 20, w - 16, 24, name);
  }

  function heads(weights, top) {
    const rows = Math.ceil(weights.length / Math.max(1, Math.floor(inner / 86))), columns = Math.ceil(weights.length / rows), w = inner / columns;
    weights.forEach((row, head) => {
      const x = LEFT + head % columns * w, at = top + Math.floor(head / columns) * 68, base = at + 46;
      const order = row.map((weight, index) => [weight, index]).sort((a, b) => b[0] - a[0]);
      const [first, best] = order[0], place = index => x + 8 + (row.length > 1 ? index / (row.length - 1) : 1) * (w - 20);
      const shown = order.filter(([weight]) => weight >= MIN_WEIGHT).slice(0, MAX_LINES);
      const group = part('head', `head ${head} looked most at token ${best + 1}, ${data.tokens[best]}, ${percent(first)}`, x, at, w - 4, 64,
        order.slice(0, 12).map(([weight, index]) => [`${index + 1} “${data.tokens[index]}”`, weight]), {weights: row});
      const apex = place(row.length - 1);
      for (const [weight, index] of shown) {
        const line = `M${apex} ${at + 18}Q${place(index)} ${at + 18} ${place(index)} ${base}`;
        node(group, 'path', {d: line, class: 'ray', 'stroke-width': 0.8 + 4 * weight, opacity: 0.25 + 0.75 * Math.sqrt(weight),
          'data-tip': `head ${head}, token ${index + 1} “${data.tokens[index]}”: ${weight}`});
      }
      node(group, 'path', {class: 'ticks', d: row.map((_, index) => `M${place(index)} ${base}v3`).join('')});
      write(group, x + 7, at + 13, head, 'quiet');
      write(group, x + 7, at + 60, cut(data.tokens[best], w - 50), 'word');
      write(group, x + w - 10, at + 60, percent(first), 'quiet', {'text-anchor': 'end'});
    });
    return rows * 68;
  }

  // What a part adds to the residual stream: norm, and the angle by which the stream turned.
  function addition(name, added) {
    if (!added) return;
    const group = part('added', `${name} norm ${short(added.norm)}; the stream has norm ${short(added.residual_norm)}, cosine ${short(added.cosine)}`,
      LEFT, y, inner, 30, [['norm of what is added', added.norm], ['norm of the stream after it', added.residual_norm], ['cosine', added.cosine]]);
    const angle = Math.acos(Math.min(1, Math.max(-1, added.cosine)));
    node(group, 'path', {class: 'arrow', d: `M${LEFT} ${y + 15}H${SPINE + 9}`});
    node(group, 'circle', {class: 'plus', cx: SPINE, cy: y + 15, r: 9});
    write(group, SPINE, y + 19.5, '+', 'sign', {'text-anchor': 'middle'});
    node(group, 'path', {class: 'turn', d: `M${LEFT + 30} ${y + 22}H${LEFT + 8}L${LEFT + 8 + 20 * Math.cos(angle)} ${y + 22 - 20 * Math.sin(angle)}`});
    write(group, LEFT + 38, y + 19, `${wide ? name : 'adds'} ${short(added.norm)}`, 'name');
    write(group, right - 8, y + 19, `‖x‖ ${short(added.residual_norm)} · cosine ${short(added.cosine)}`, 'quiet', {'text-anchor': 'end'});
    stream(y + 15, added.residual_norm);
    y += 36;
  }

  function normed(value) {
    if (value == null) return;
    const group = part('norm', `norm: reads the stream of norm ${short(value)}`, LEFT, y, inner, 26, [['norm of the residual stream', value]]);
    node(group, 'path', {class: 'arrow', d: `M${SPINE} ${y + 13}H${LEFT}`});
    write(group, LEFT + 8, y + 17, 'norm', 'name');
    write(group, right - 8, y + 17, '‖x‖ ' + short(value), 'quiet', {'text-anchor': 'end'});
    y += 32;
  }

  function cache(row) {
    const {elements, bytes, full_elements, full_bytes} = row.cache, saved = full_elements > elements;
    const say = (count, size) => `${count.toLocaleString('en')} numbers, ${size.toLocaleString('en')} ${wide ? 'bytes' : 'B'}`;
    const group = part('cache', `cached ${say(elements, bytes)}` + (saved ? `; as full heads ${say(full_elements, full_bytes)}` : ''),
      LEFT, y, inner, saved ? 46 : 26, [['numbers', elements], ['bytes', bytes], ['numbers as full heads', full_elements], ['bytes as full heads', full_bytes]]);
    const space = inner - 16;
    for (const [line, [count, size, text]] of [[elements, bytes, 'cached: '], [full_elements, full_bytes, 'full heads: ']].entries()) {
      if (line && !saved) break;
      node(group, 'rect', {class: line ? 'hollow' : 'level', x: LEFT + 8, y: y + 4 + 20 * line, width: space * count / full_elements, height: 17, rx: 3});
      write(group, LEFT + 14, y + 17 + 20 * line, text + say(count, size), 'word');
    }
    y += saved ? 52 : 32;
  }

  function router(row) {
    const {scores, bias, chosen, runner_up} = row.router, slot = inner / scores.length, h = 84, base = y + h - 18;
    const ranks = scores.map((score, expert) => score + (bias ? bias[expert] : 0)), top = Math.max(...ranks, ...scores) || 1;
    const weight = Object.fromEntries(chosen.map(one => [one.expert, one.weight]));
    const facts = scores.map((score, expert) => [`${expert}` + (expert in weight ? ' chosen' : expert === runner_up ? ' next' : ''),
      score, {of: 'router', layer: row.layer, index: expert}, bias && bias[expert], weight[expert]]);
    const kind = row.router.scoring === 'softmax' ? 'router softmax' : 'router';
    const group = part(kind, `router: ${chosen.map(one => `expert ${one.expert} ${percent(one.weight)}`).join(', ')}`, LEFT, y, inner, h, facts,
      {layer: row.layer, chosen, runner_up, experts: scores.length});
    scores.forEach((score, expert) => {
      const x = LEFT + expert * slot + slot * 0.15, w = slot * 0.7, tall = 58 * score / top, used = expert in weight;
      node(group, 'rect', {x, y: base - tall, width: w, height: tall, fill: palette[expert % palette.length], opacity: used ? 1 : 0.4,
        class: 'score', 'data-tip': `expert ${expert}, score ${score}` + (used ? `, weight ${weight[expert]}` : '')});
      if (bias) {
        const more = 58 * bias[expert] / top;
        node(group, 'rect', {class: 'bias', x, y: base - tall - 2 - Math.max(0, more), width: w, height: Math.abs(more), 'data-tip': `expert ${expert}, bias ${bias[expert]}`});
      }
      if (slot >= 16 || used && scores.length <= 40) write(group, x + w / 2, base + 13, expert, used ? 'name' : 'quiet', {'text-anchor': 'middle'});
    });
    y += h + 6;
  }

  function experts(row) {
    const {routed_norm, shared_norm} = row.feed_forward, list = row.router.chosen;
    const columns = Math.max(1, Math.floor(inner / 112)), total = list.length + (shared_norm == null ? 0 : 1), w = inner / Math.min(columns, total);
    const facts = [...list.map(one => [`expert ${one.expert}, weight`, one.weight]), ['norm of the routed sum', routed_norm], ['norm of the shared expert', shared_norm]];
    const h = Math.ceil(total / columns) * 28 + 4;
    const label = list.map(one => `expert ${one.expert} ${percent(one.weight)}`).join(', ') + (shared_norm == null ? '' : ', shared expert');
    const group = part('experts', 'run: ' + label, LEFT, y, inner, h, facts.filter(fact => fact[1] != null));
    for (let index = 0; index < total; index++) {
      const x = LEFT + index % columns * w + 4, at = y + 4 + Math.floor(index / columns) * 28, one = list[index];
      const box = node(group, 'rect', {x, y: at, width: w - 8, height: 24, rx: 4, class: one ? 'score' : 'shared',
        'data-tip': one ? `expert ${one.expert}, weight ${one.weight}` : `shared expert, norm ${shared_norm}`});
      if (one) box.setAttribute('fill', palette[one.expert % palette.length]);
      const text = write(group, x + 8, at + 16, one ? `expert ${one.expert}` : w > 140 ? 'shared, norm' : 'shared', 'name');
      const number = write(group, x + w - 16, at + 16, one ? percent(one.weight) : short(shared_norm), 'name', {'text-anchor': 'end'});
      if (one) text.style.fill = number.style.fill = ink(one.expert);
    }
    y += h + 6;
  }

  function layer(row) {
    const open = opened.has(row.layer), chosen = row.router ? row.router.chosen : [];
    const twoLines = row.lens && !wide, h = twoLines ? 56 : 30;
    const label = `layer ${row.layer}` + (row.lens ? `, so far: ${said(row.lens)}` : '');
    const facts = [...(row.lens ? words(row.lens) : []), ['norm of the stream after it', row.output_norm], ['cosine, before and after', row.cosine]];
    y += 6;
    const group = part('layer', label, LEFT - 6, y, inner + 6, h, facts.filter(fact => fact[1] != null), {layer: row.layer, lacks: row.lacks});
    group.setAttribute('aria-expanded', open);
    write(group, LEFT + 2, y + 19, `${open ? '▾' : '▸'} layer ${row.layer}`, 'title');
    const shown = chosen.slice(0, wide ? 8 : 6);
    shown.forEach((one, index) => {
      const x = LEFT + 82 + index * 27;
      node(group, 'rect', {class: 'score', x, y: y + 5, width: 24, height: 20, rx: 10, fill: palette[one.expert % palette.length], 'data-tip': `expert ${one.expert}, weight ${one.weight}`});
      write(group, x + 12, y + 19, one.expert, 'name', {'text-anchor': 'middle'}).style.fill = ink(one.expert);
    });
    if (!chosen.length) write(group, LEFT + 82, y + 19, 'dense', 'quiet');
    if (row.lens) {
      const x = wide ? LEFT + 92 + Math.max(2, shown.length) * 27 : LEFT + 2;
      lens(group, row.lens, x, twoLines ? y + 30 : y + 4, right - x - 2);
    }
    y += h + 6;
    if (open) {
      normed(row.input_norm);
      if (row.latent) {
        const {query, key_value, rotary_key} = row.latent, all = [];
        if (query) all.push([`c_q`, 'query', query, `latent query ${data.width} → ${query.width}`]);
        all.push(['c_kv', 'key_value', key_value, `latent key/value ${data.width} → ${key_value.width}`]);
        all.push(['k_rope', 'rotary_key', rotary_key, `rotary key ${rotary_key.width}`]);
        const columns = wide ? all.length : 1, w = inner / columns;
        all.forEach(([name, kind, values, text], index) => vector(name, kind, values, LEFT + index % columns * w, y + Math.floor(index / columns) * 54, w - (wide ? 4 : 0), text));
        y += Math.ceil(all.length / columns) * 54;
      }
      cache(row);
      if (row.attention.weights) y += heads(row.attention.weights, y);
      addition('attention adds', row.attention.added);
      normed(row.attention.added && row.attention.added.residual_norm);
      if (row.router) {
        router(row);
        experts(row);
      } else {
        const dense = part('dense', 'dense feed-forward', LEFT, y, inner, 26, []);
        write(dense, LEFT + 8, y + 17, 'feed-forward', 'name');
        y += 32;
      }
      addition(row.router ? 'experts add' : 'feed-forward adds', row.feed_forward.added);
      for (const lack of row.lacks) {
        write(svg, LEFT + 2, y + 12, cut(lack, inner), 'lack', {'data-tip': lack});
        y += 18;
      }
    }
    if (norm !== row.output_norm) stream(y, row.output_norm);
  }

  function distribution() {
    const entries = walk.logits, h = 24 + entries.length * 20;
    const group = part('logits', 'logits: ' + said(entries.slice(0, 3)), LEFT, y, inner, h,
      entries.map(entry => [`“${entry.token}”`, entry.logit, {of: 'output', index: entry.id}, null, entry.probability]));
    write(group, LEFT + 8, y + 16, 'logits', 'name');
    write(group, right - 8, y + 16, 'logit · probability', 'quiet', {'text-anchor': 'end'});
    entries.forEach((entry, index) => {
      const at = y + 22 + index * 20, space = inner - 16;
      node(group, 'rect', {class: 'level', x: LEFT + 8, y: at, width: Math.max(1, entry.probability * space), height: 17, rx: 3, 'data-tip': `“${entry.token}”: logit ${entry.logit}, probability ${entry.probability}`});
      write(group, LEFT + 14, at + 13, cut(entry.token, space / 2), 'word');
      write(group, right - 14, at + 13, `${entry.logit.toFixed(2)} · ${percent(entry.probability)}`, 'quiet', {'text-anchor': 'end'});
    });
    y += h + 6;
  }

  // Each sampler stage that runs as a bar of the candidates' probabilities after it; then the names of those that are off.
  function sampler() {
    const {stages, candidates, token} = data.sampler, space = inner - 16;
    [{name: 'model', changed: true, active: true}, ...stages].forEach((stage, step) => {
      if (!stage.active) return;
      const kept = step ? `${stage.num_candidates.toLocaleString('en')} left` : '', state = stage.changed ? kept : kept + ' · changed nothing';
      const group = part('sampler', `${stage.name} ${state}`, LEFT, y, inner, 46,
        candidates.map(one => [`“${one.token}”` + (one.removed_by === stage.name ? ', removed here' : ''), one.probabilities[step]]), {says: stage.says, title: stage.name});
      write(group, LEFT + 8, y + 17, stage.name, 'name');
      write(group, right - 8, y + 17, state, 'quiet', {'text-anchor': 'end'});
      let x = LEFT + 8;
      candidates.forEach((one, index) => {
        const w = one.probabilities[step] * space;
        if (w < 0.5) return;
        const clip = node(group, 'svg', {x, y: y + 23, width: Math.max(0.5, w - 1), height: 18, 'data-tip': `“${one.token}” after ${stage.name}: ${one.probabilities[step]}`});
        node(clip, 'rect', {class: one.id === token ? 'picked' : index % 2 ? 'segment odd' : 'segment', width: w, height: 18});
        if (w > 22) write(clip, 4, 13, cut(one.token, w - 6), one.id === token ? 'word on' : 'word');
        x += w;
      });
      y += 50;
    });
    const off = stages.filter(stage => !stage.active), lines = ['off:'];
    if (!off.length) return;
    for (const {name} of off) {
      const longer = lines[lines.length - 1] + ` ${name} ·`;
      if (longer.length * 6.4 > inner - 16) lines.push(name + ' ·'); else lines[lines.length - 1] = longer;
    }
    const h = 12 + 18 * lines.length, group = part('sampler', 'stages that are off', LEFT, y, inner, h, [],
      {title: 'Stages that are off', says: 'They leave every candidate as it is.', lacks: off.map(stage => `${stage.name}: ${stage.says}`)});
    lines.forEach((line, index) => write(group, LEFT + 8, y + 18 + 18 * index, line.replace(/ ·$/, index + 1 < lines.length ? ',' : '').replaceAll(' ·', ','), 'quiet'));
    y += h + 6;
  }

  const start = part('token', `token ${walk.position + 1}: ${walk.token}`, LEFT - 6, y, inner + 6, 40, [['id', walk.id, {of: 'embedding', index: walk.id}], ['position, from 0', walk.position]]);
  write(start, LEFT + 4, y + 27, cut(walk.token, inner * 0.5), 'large');
  write(start, right - 8, y + 25, `token ${walk.position + 1} of ${data.tokens.length} · id ${walk.id}`, 'quiet', {'text-anchor': 'end'});
  from = y + 40;
  y += 46;
  const embedded = part('embedding', `embedding, norm ${short(norm)}`, LEFT, y, inner, 26, [['norm', norm], ['row', walk.id, {of: 'embedding', index: walk.id}]]);
  write(embedded, LEFT + 8, y + 17, `embedding → ${data.width} numbers`, 'name');
  write(embedded, right - 8, y + 17, '‖x‖ ' + short(norm), 'quiet', {'text-anchor': 'end'});
  y += 30;
  walk.layers.forEach(layer);
  y += 6;
  stream(y + 13, null);
  const last = part('norm', `final norm, ${short(walk.final_norm.norm)}`, LEFT, y, inner, 26, [['norm behind the final norm', walk.final_norm.norm]]);
  node(last, 'path', {class: 'arrow', d: `M${SPINE} ${y + 13}H${LEFT}`});
  write(last, LEFT + 8, y + 17, 'final norm', 'name');
  write(last, right - 8, y + 17, '‖x‖ ' + short(walk.final_norm.norm), 'quiet', {'text-anchor': 'end'});
  y += 32;
  distribution();
  if (data.sampler) sampler();
  else {
    write(svg, LEFT + 2, y + 13, cut(walk.next ? 'This token was given, not sampled: no sampler ran.' : 'The text ends here.', inner), 'lack');
    y += 22;
  }
  if (walk.next) {
    const next = part('next', `next token: ${walk.next.token}`, LEFT - 6, y, inner + 6, 40, [['id', walk.next.id, {of: 'embedding', index: walk.next.id}]]);
    write(next, LEFT + 4, y + 27, cut(walk.next.token, inner * 0.5), 'large');
    write(next, right - 8, y + 25, data.sampler ? `sampled at ${percent(data.sampler.probability)}` : 'the next token', 'quiet', {'text-anchor': 'end'});
    y += 46;
  }
  svg.setAttribute('viewBox', `0 0 ${width} ${y}`);
  return {svg, parts, height: y};
}

// Numbers as bars in one path each for positive and negative ones; `name` and the numbers serve the hover.
function bars(parent, values, x, y, w, h, name) {
  const largest = Math.max(...values.map(Math.abs)) || 1, slot = w / values.length, middle = y + h / 2;
  for (const sign of [1, -1]) {
    const line = values.map((value, index) => value * sign > 0
      ? `M${(x + index * slot).toFixed(2)} ${middle}v${(-value / largest * h / 2).toFixed(2)}h${(slot * 0.8).toFixed(2)}V${middle}` : '').join('');
    node(parent, 'path', {d: line, class: sign > 0 ? 'up' : 'down'});
  }
  const cover = node(parent, 'rect', {x, y, width: w, height: h, class: 'cover'});
  cover.numbers = {name, values};
}
