// The page's one selected token, which every view of a text shows. A view joins with
//   selection.follow({element, ids: () => [token id, ...], first: () => position, show: position => {}, settle: position => {}})
// and gets {update, choose, step, position}. Positions count from 0 in `ids`, -1 is none of them; `first`, 0 by default, is
// the first that can be selected. `show` is called at once and draws; `settle` once the selection rests and the view can be
// seen, and asks the server: while a text plays, of the view that plays alone, so that the picture moves smoothly. `update(settled)` tells that `ids` have changed, and which position the server's answer is about.
// A token is the same one in two texts if it and all tokens before it are: all that a model does with it is the same then.
window.selection = (() => {
  const REST_MS = 150, views = [], watchers = [];
  let chosen = [], playing = null;  // the ids up to the selected token; {view, timer} while a text plays

  function find(ids) {
    const same = chosen.length <= ids.length && chosen.every((id, index) => id === ids[index]);
    return same ? chosen.length - 1 : -1;
  }

  function follow({element, ids, first = () => 0, show, settle = () => {}}) {
    let settled = -1, moved = -Infinity, timer = null;
    const view = {element, position: -1};

    function rest() {
      clearTimeout(timer);
      const now = performance.now(), wait = now - moved < REST_MS ? REST_MS : 0;
      if (view.position < first() || view.position === settled || playing && playing.view !== view) return;
      timer = setTimeout(() => {
        if (!element.checkVisibility() || view.position === settled) return;
        settled = view.position;
        settle(settled);
      }, wait);
      moved = now;
    }

    view.refresh = () => {
      const position = find(ids());
      if (position !== view.position) { view.position = position; show(position); }
      rest();
    };
    view.update = about => {
      if (about !== undefined) { settled = about; view.position = NaN; }  // whatever is drawn is to be drawn again
      view.refresh();
    };
    view.choose = position => {
      const all = ids();
      if (position < first() || position >= all.length) return;
      chosen = all.slice(0, position + 1);
      for (const other of views) if (other.element.isConnected) other.refresh();
    };
    view.step = by => {
      const last = ids().length - 1, from = view.position < first() ? (by > 0 ? first() - 1 : last + 1) : view.position;
      view.choose(Math.min(last, Math.max(first(), from + by)));
    };
    view.ended = () => view.position >= ids().length - 1;
    new IntersectionObserver(rest).observe(element);  // a view of a hidden tab settles when the tab is opened
    views.push(view);
    view.refresh();
    return view;
  }

  function stop() {
    if (playing) clearInterval(playing.timer);
    playing = null;
    for (const view of views) if (view.element.isConnected) view.refresh();
    for (const changed of watchers) changed();
  }

  function play(view, tokensPerSecond) {
    stop();
    const next = () => { if (view.ended() || !view.element.isConnected) stop(); else view.step(1); };
    playing = {view, timer: setInterval(next, 1000 / tokensPerSecond)};
    view.step(view.ended() ? -Infinity : 1);
    for (const changed of watchers) changed();
  }

  // Buttons that step and play a view's text.
  function player(view) {
    const bar = document.createElement('div');
    bar.className = 'player';
    bar.setAttribute('role', 'group');
    bar.setAttribute('aria-label', 'step and play');
    const button = (sign, label, act) => {
      const made = document.createElement('button');
      made.textContent = sign;
      made.title = label;
      made.setAttribute('aria-label', label);
      made.addEventListener('click', act);
      bar.append(made);
      return made;
    };
    const pace = document.createElement('select');
    pace.setAttribute('aria-label', 'pace');
    for (const speed of [1, 2, 4, 8, 16]) {
      const option = document.createElement('option');
      option.value = speed;
      option.textContent = speed + ' tokens/s';
      option.selected = speed === 4;
      pace.append(option);
    }
    button('◀', 'previous token', () => { stop(); view.step(-1); });
    const start = button('▶', 'play', () => playing ? stop() : play(view, Number(pace.value)));
    button('▶|', 'next token', () => { stop(); view.step(1); });
    bar.append(pace);
    pace.addEventListener('change', () => playing && play(view, Number(pace.value)));
    watchers.push(() => {
      start.textContent = playing ? '❚❚' : '▶';
      start.title = playing ? 'pause' : 'play';
      start.setAttribute('aria-label', start.title);
    });
    return bar;
  }

  // Arrow keys step the text on the screen, unless the focus is on something that has its own use for them.
  document.addEventListener('keydown', event => {
    const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const free = document.activeElement === document.body || document.activeElement.closest('.player button');
    const view = views.find(one => one.element.isConnected && one.element.checkVisibility());
    if (!by || !free || event.defaultPrevented || !view || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    stop();
    view.step(by);
  });

  return {follow, player, stop};
})();
