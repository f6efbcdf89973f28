// What the number boxes, sliders and dropdowns of gradio 6.31 lack.
() => {
  const box = 'input[aria-label^="number input for"]', control = box + ', input[aria-label^="range slider for"]';
  // Arrow keys move a slider as a pointer does, but only a pointer is seen to let it go.
  addEventListener('keyup', event => {
    if (event.target.matches?.(control) && /^(Arrow|Page|Home|End|Enter)/.test(event.key))
      event.target.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
  });
  // A decimal comma, which browsers drop: 0,7 would be 7.
  addEventListener('beforeinput', event => {
    if (event.target.type !== 'number' || event.data !== ',') return;
    event.preventDefault();
    document.execCommand('insertText', false, '.');
  });
  // Chromium's Tab key goes to a list of options that scrolls. It closes, as its box has lost the focus, and takes that with it.
  addEventListener('keydown', ({key, target}) => {
    if (key === 'Tab' && target.matches?.('[role=combobox]'))
      document.getElementById(target.getAttribute('aria-controls'))?.setAttribute('tabindex', -1);
  }, true);
  // A dropdown tells of an input whenever it is left. picked() is whether an option was picked since it got the focus, once.
  let isPicked = false;
  addEventListener('focusin', () => { isPicked = false; }, true);
  addEventListener('mousedown', ({target}) => { if (target.closest?.('[role=option]')) isPicked = true; }, true);
  addEventListener('keydown', ({key, target}) => {
    if (key === 'Enter' && target.matches?.('[role=combobox]')) isPicked = true;
  }, true);
  window.picked = () => {
    const was = isPicked;
    isPicked = false;
    return was;
  };
  // A pasted seed is kept as a typed one is; gradio tells of keys alone.
  addEventListener('paste', ({target}) => {
    const keep = target.closest?.('#seed') && document.querySelector('#keep-seed input');
    if (keep && !keep.checked) setTimeout(() => keep.click());
  });
  // An emptied box shows its last number again, not the smallest.
  for (const type of ['focusin', 'change'])
    addEventListener(type, ({target}) => { if (target.matches?.(box) && target.value) target.dataset.last = target.value; });
  addEventListener('blur', event => {
    if (!event.target.matches?.(box) || event.target.value !== '') return;
    event.target.value = event.target.dataset.last;
    event.target.dispatchEvent(new Event('input', {bubbles: true}));
  }, true);
}
