// Numbers and elements.

const UNITS = { byte: "bits per byte", token: "bits per token" };

const whole = (number) => Math.round(number).toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(1)}\u202f%`;

/** 1.2 M, 350 K: for axes. */
function short(number) {
  if (number >= 1e6) return `${+(number / 1e6).toFixed(3)}M`;
  return number >= 1e4 ? `${+(number / 1e3).toFixed(2)}K` : whole(number);
}

function size(bytes) {
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(2)} MB`;
  return bytes >= 1e3 ? `${(bytes / 1e3).toFixed(1)} KB` : `${Math.ceil(bytes)} bytes`;
}

function duration(seconds) {
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 120 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${(minutes / 60).toFixed(1)} h`;
}

/** Where a token is: "token 1,234 · byte 5,678 · 12.3 %"; a part of a document doesn't know its bytes. */
function place(series, token) {
  const parts = [`token ${whole(series.firstToken + token)}`];
  if (series.isText && series.firstToken === 0) parts.push(`byte ${whole(series.bytesBefore[token])}`);
  parts.push(percent(token / series.length));
  return parts.join(" · ");
}

/** Round numbers from `low` to `high`, about as many as wanted. */
function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step || 0);
  return { values, step };
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
