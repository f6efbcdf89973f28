// Plays the checkpoints of a run: moves the slider one on as soon as the checkpoint before is drawn. Arrow keys step.
const INTERVAL_MS = 600, TIMEOUT_MS = 4000;
const bar = element.querySelector('.film'), [back, play, next] = bar.querySelectorAll('button');
let timer = null, asked = null, expires = 0;  // asked: the checkpoint that was asked for and is not drawn yet

const slider = () => document.querySelector('#probe-at input[type=range]');
const drawn = () => Number((document.querySelector('#probe-note')?.textContent.match(/Checkpoint (\d+):/) || [])[1]);

// Not where the slider is: the answer of a poll under way may move it back for a moment. At its end it follows the newest
// checkpoint, which may be another than was asked for.
function position() {
  if (asked === drawn() || Date.now() > expires) asked = null;
  return asked ?? drawn();
}

function show(index) {
  const range = slider();
  asked = Math.max(0, Math.min(index, Number(range.max)));
  expires = Date.now() + TIMEOUT_MS;
  range.value = asked;
  range.dispatchEvent(new Event('input', {bubbles: true}));
}

function setPlaying(playing) {
  clearInterval(timer);
  timer = playing ? setInterval(advance, INTERVAL_MS) : null;
  play.textContent = playing ? '❚❚ pause' : '▶ play';
  play.title = playing ? 'pause' : 'play';
  play.setAttribute('aria-label', play.title);
}

function advance() {
  const range = slider();
  if (!range || !bar.isConnected || !bar.checkVisibility() || position() >= Number(range.max)) setPlaying(false);
  else if (asked === null) show(position() + 1);
}

function step(by) {
  setPlaying(false);
  show(position() + by);
}

back.addEventListener('click', () => step(-1));
next.addEventListener('click', () => step(1));
document.addEventListener('input', event => { if (event.isTrusted && event.target === slider()) asked = null; });
play.addEventListener('click', () => {
  if (timer) return setPlaying(false);
  if (position() >= Number(slider().max)) show(0);
  setPlaying(true);
});
bar.addEventListener('keydown', event => {
  const by = {ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity}[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  step(by);
});
