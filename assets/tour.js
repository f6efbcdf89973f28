// A tour of six steps over the live page. Each opens a tab, rings a picture, and says what is in it, with the numbers of the
// text on the screen. All text is set through textContent.
const root = element.querySelector('.tour'), start = root.querySelector('button'), card = root.querySelector('.card');
const FIRST = 12;  // the token that the tour follows, unless one is selected
let step = -1, target = null;

const strip = () => document.getElementById('strip-tokens');
const drawn = () => strip().text;
const followed = () => Math.max(strip().view.position, drawn().head.ids.length) - drawn().head.ids.length;
const word = () => '“' + (drawn().tokens[followed()]?.t || '').trim() + '”';

function routed() {
  const {head, tokens} = drawn(), layer = head.layers[head.layers.length - 1], chosen = tokens[followed()]?.e?.[layer];
  if (!chosen) return 'This model is dense: every token runs through all of its weights. Models with experts light a board here.';
  return 'Every row is a layer. In layer ' + layer + ' the router sent ' + word() + ' to experts ' +
    chosen.map(([expert]) => expert).join(' and ') + ' out of ' + head.experts + '. The others rested: that is what makes a mixture ' +
    'of experts cheap. The threads are its whole way.';
}

const STEPS = [
  {title: 'What a token is', tab: 'Playground', at: '#strip',
   say: () => 'The model writes tokens: words, or pieces of words. It has written ' + drawn().tokens.length + ' here, one at a time, each ' +
     'after all before it. We follow the outlined one, ' + word() + '.'},
  {title: 'Where it went', tab: 'Playground', at: '#board', say: routed},
  {title: 'What a head looked at', tab: 'Attention', at: '#attention-strip',
   say: () => 'To understand ' + word() + ', each attention head looks back at the text. The stronger the colour, the more of this ' +
     'head’s attention a token gets. The sliders above choose another layer and head.'},
  {title: 'What the latent saves', tab: 'Walk', at: '#walk .part.cache',
   say: () => 'This is the whole way of ' + word() + ' through the model. To go on writing, every layer keeps something of every token. ' +
     'DeepSeek’s latent attention keeps one short vector for all heads, the first bar; the second is what their keys and values would take.'},
  {title: 'What the sampler did', tab: 'Playground', at: '#funnel',
   say: () => 'Before ' + word() + ' was written, the model gave every token a probability. Each column is a step of the sampler: some ' +
     'candidates are removed, the others share what is left, and the marked one was drawn.'},
  {title: 'What happens without an expert', tab: 'Intervene', at: '#strip-changed',
   say: () => 'The same prompt and seed with an expert switched off. The bar marks the first token that differs. Choose another ' +
     'expert or layer above and see what it was good for.'},
];

// Clicks a tab, which on a phone may be in a menu.
async function openTab(name) {
  const find = selector => [...document.querySelectorAll(selector)].find(one => one.textContent.trim() === name);
  if (!find('[role=tab]')) {
    document.querySelector('[aria-label="More tabs"]')?.click();
    await new Promise(done => setTimeout(done, 100));
  }
  (find('[role=tab]') || find('.overflow-dropdown button'))?.click();
}

async function visible(selector) {
  for (let tries = 0; tries < 200; tries++) {
    const found = document.querySelector(selector);
    if (found?.checkVisibility() && found.getBoundingClientRect().height) return found;
    await new Promise(done => setTimeout(done, 50));
  }
  return document.querySelector(selector);
}

function ring(found) {
  target?.classList.remove('toured');
  target = found;
  target?.classList.add('toured');
}

function place() {
  if (!target) return;
  const box = target.getBoundingClientRect(), height = card.offsetHeight, room = innerHeight - 12;
  const top = box.bottom + 12 + height < room ? box.bottom + 12 : box.top - 12 - height > 0 ? box.top - 12 - height : room - height;
  card.style.top = top + 'px';
  card.style.left = Math.max(12, Math.min(innerWidth - card.offsetWidth - 12, box.left)) + 'px';
}

function leave() {
  ring(null);
  step = -1;
  card.hidden = true;
  start.focus();
}

async function go(to) {
  if (to < 0 || to >= STEPS.length) { leave(); return; }
  step = to;
  const {title, tab, at, say} = STEPS[to];
  const view = strip().view, first = drawn().head.ids.length;
  if (view.position < first) view.choose(Math.min(first + FIRST, drawn().ids.length - 1));
  await openTab(tab);
  const found = await visible(at);
  if (step !== to) return;
  ring(found);
  target?.scrollIntoView({block: 'center'});
  card.querySelector('.step').textContent = (to + 1) + ' of ' + STEPS.length;
  card.querySelector('h2').textContent = title;
  card.querySelector('.say').textContent = say();
  card.querySelector('.back').disabled = to === 0;
  card.querySelector('.next').textContent = to + 1 < STEPS.length ? 'Next' : 'Done';
  card.hidden = false;
  place();
  card.querySelector('.next').focus({preventScroll: true});
}

start.addEventListener('click', () => go(0));
card.querySelector('.back').addEventListener('click', () => go(step - 1));
card.querySelector('.next').addEventListener('click', () => go(step + 1));
card.querySelector('.leave').addEventListener('click', leave);
card.addEventListener('keydown', event => { if (event.key === 'Escape') leave(); });
addEventListener('resize', place);
addEventListener('scroll', place, {passive: true, capture: true});
setInterval(() => {  // a picture is drawn anew when another token is selected
  if (step < 0 || card.hidden || target?.isConnected) return;
  ring(document.querySelector(STEPS[step].at));
  target?.scrollIntoView({block: 'center'});
  place();
}, 200);
