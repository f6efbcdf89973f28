// The samplers' order as a list to drag in, by mouse, touch or Shift with the arrow keys. Value: a named order, or all samplers
// with commas between. Property "active": the names of those that the settings enable, which are drawn strong.
const list = element.querySelector('.stages'), named = JSON.parse(element.querySelector('.order').dataset.named);
const buttons = [...element.querySelectorAll('.order button')];
let stages = [], current = 0, dragged = null;

const nameOf = stages => Object.keys(named).find(name => named[name].join() === stages.join()) || stages.join();

function draw() {
  const value = props.value || Object.keys(named)[0], active = new Set(props.active || []), focused = list.contains(document.activeElement);
  stages = [...(named[value] || value.split(','))];
  for (const button of buttons) button.setAttribute('aria-pressed', button.dataset.name === value);
  list.textContent = '';
  stages.forEach((stage, index) => {
    const item = document.createElement('li');
    item.textContent = stage;
    item.tabIndex = index === current ? 0 : -1;
    item.setAttribute('role', 'option');
    item.setAttribute('aria-selected', index === current);
    item.setAttribute('aria-label', stage + ', ' + (index + 1) + ' of ' + stages.length);
    item.classList.toggle('active', active.has(stage));
    list.append(item);
  });
  if (focused) list.children[current].focus();
}

function commit(order) {
  if (nameOf(order) === nameOf(stages)) return draw();
  props.value = nameOf(order);
  draw();
  trigger('input');
}

list.addEventListener('keydown', event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!step) return;
  event.preventDefault();
  const next = Math.min(stages.length - 1, Math.max(0, current + step)), order = [...stages];
  if (event.shiftKey) order.splice(next, 0, ...order.splice(current, 1));
  current = next;
  if (event.shiftKey) commit(order); else draw();
});
list.addEventListener('focusin', event => { current = [...list.children].indexOf(event.target); });
list.addEventListener('pointerdown', event => {
  dragged = event.target.closest('li');
  if (!dragged) return;
  current = [...list.children].indexOf(dragged);
  dragged.classList.add('dragged');
  list.setPointerCapture(event.pointerId);
});
list.addEventListener('pointermove', event => {
  const over = dragged && document.elementFromPoint(event.clientX, event.clientY)?.closest('li');
  if (!over || over === dragged || !list.contains(over)) return;
  const box = over.getBoundingClientRect(), isLater = dragged.compareDocumentPosition(over) & Node.DOCUMENT_POSITION_FOLLOWING;
  // Only past its middle, lest two of different widths change places for ever.
  if (isLater && event.clientX > box.x + box.width / 2) over.after(dragged);
  if (!isLater && event.clientX < box.x + box.width / 2) over.before(dragged);
});
list.addEventListener('pointerup', () => {
  if (!dragged) return;
  const order = [...list.children].map(item => item.textContent);
  current = order.indexOf(dragged.textContent);
  dragged = null;
  commit(order);
  list.children[current].focus();
});
list.addEventListener('pointercancel', () => { dragged = null; draw(); });
for (const button of buttons) button.addEventListener('click', () => commit(named[button.dataset.name]));
watch(['value', 'active'], draw);
draw();
