// What the scripts that draw tokens share; each begins with it.
const percent = value => value == null ? '–' : (100 * value).toFixed(value < 0.0995 ? 1 : 0) + ' %';
const shade = strength => 'rgba(230,159,0,' + (0.5 * Math.min(1, Math.max(0, strength))).toFixed(2) + ')';
const HIDDEN = /([\p{Cc}\p{Cf}\p{Zl}\p{Zp}])/u;  // characters that do not show, or change how others do
const sign = c => ({'\n': '↵', '\t': '⇥'})[c] || '⟨U+' + c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0') + '⟩';
const visible = text => text.split(HIDDEN).map((part, index) => index % 2 ? sign(part) : part).join('');
