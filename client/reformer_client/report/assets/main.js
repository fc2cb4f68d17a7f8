// What the parts share: what the chart shows, what is on the screen, and how surprise becomes a shade.

const SMOOTHINGS = [16, 64, 256, 1024, 4096, 16384, 65536];
const LEVELS = 8;

class State {
  constructor(series) {
    this.series = series;
    this.unit = series.isText ? "byte" : "token";
    this.smoothing = "auto";
    this.from = 0;
    this.to = series.length;
    this.matches = [];
    this.listeners = [];
    this.scaleShades();
  }

  onchange(listener) {
    this.listeners.push(listener);
  }

  changed(what) {
    for (const listener of this.listeners) listener(what);
  }

  /** Tokens that the line is smoothed over: what was chosen, or a hundredth of what is in view. */
  get window() {
    return this.smoothing === "auto" ? Math.max(1, (this.to - this.from) / 100) : this.smoothing;
  }

  /** Most tokens have the first shades, one of fifty has the last: so any text has some of each. */
  scaleShades() {
    this.leastShaded = this.series.quantile(0.4);
    this.levelBits = Math.max(0.01, (this.series.quantile(0.98) - this.leastShaded) / (LEVELS - 2));
  }

  levelOfBits(bits) {
    return Math.min(LEVELS - 1, Math.max(0, 1 + Math.floor((bits - this.leastShaded) / this.levelBits)));
  }

  /** 0 to 7, of the bits of the tokens from `start` to `end` (excluded). */
  level(start, end = start + 1) {
    return this.levelOfBits(this.series.bitsBefore[end] - this.series.bitsBefore[start]);
  }

  setUnit(unit) {
    this.unit = unit;
    this.changed("unit");
  }

  setSmoothing(smoothing) {
    this.smoothing = smoothing;
    this.changed("smoothing");
  }

  /** Shows the tokens `from` to `to`, or as many around them as it takes at least. */
  view(from, to) {
    const { length } = this.series;
    const span = Math.min(length, Math.max(to - from, Math.min(length, FEWEST_TOKENS)));
    this.from = Math.min(length - span, Math.max(0, (from + to - span) / 2));
    this.to = this.from + span;
    this.changed("view");
  }

  zoom(factor, around = (this.from + this.to) / 2) {
    this.view(around - (around - this.from) * factor, around + (this.to - around) * factor);
  }

  pan(tokens) {
    const by = Math.max(-this.from, Math.min(this.series.length - this.to, tokens));
    this.view(this.from + by, this.to + by);
  }

  see(first, last) {
    if (this.seen?.[0] === first && this.seen?.[1] === last) return;
    this.seen = [first, last];
    this.changed("seen");
  }

  found(tokens) {
    this.matches = tokens;
    this.changed("matches");
  }

  /** Shows the tokens `start` to `end` in the text, and in the chart if they are not in its view. */
  jump(start, end = start + 1) {
    this.reader.mark(start, end);
    if (start < this.from || start > this.to) this.pan(start - (this.from + this.to) / 2);
  }
}

function connectControls(series, state) {
  for (const input of document.querySelectorAll("#unit input")) {
    input.checked = input.value === state.unit;
    input.addEventListener("change", () => state.setUnit(input.value));
  }
  byId("unit").hidden = !series.isText;
  const smoothing = byId("smoothing");
  smoothing.append(element("option", { value: "auto" }, "auto"));
  for (const tokens of SMOOTHINGS.filter((tokens) => tokens <= series.length / 4)) {
    smoothing.append(element("option", { value: tokens }, `${whole(tokens)} tokens`));
  }
  smoothing.addEventListener("change", () => state.setSmoothing(smoothing.value === "auto" ? "auto" : Number(smoothing.value)));
  byId("zoom-in").addEventListener("click", () => state.zoom(0.5));
  byId("zoom-out").addEventListener("click", () => state.zoom(2));
  byId("zoom-all").addEventListener("click", () => state.view(0, series.length));
  const where = byId("where");
  state.onchange((what) => {
    if (what === "seen") where.textContent = place(series, state.seen[0]);
    byId("zoom-out").disabled = byId("zoom-all").disabled = state.to - state.from >= series.length;
    byId("zoom-in").disabled = state.to - state.from <= FEWEST_TOKENS;
  });
}

/** The figures of the token under the pointer. */
function connectTokenTip(series, reader) {
  const tip = byId("token-tip"), section = byId("reading");
  const hide = () => (tip.hidden = true);
  reader.addEventListener("pointerover", (event) => {
    const span = event.target.closest?.(".token");
    if (!span) return hide();
    const lines = [];
    for (let i = span.from; i < span.to; i++) {
      const bits = series.bits(i);
      lines.push(bits === null ? "the first token has no score" : `${bits.toFixed(2)} bits, probability ${probability(bits)}`);
    }
    tip.replaceChildren(element("b", {}, lines.join(" + ")), element("div", {}, place(series, span.from)));
    tip.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), frame = section.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(frame.width - tip.offsetWidth - 4, box.left - frame.left))}px`;
    const below = box.bottom - frame.top + 6;
    tip.style.top = `${below + tip.offsetHeight > frame.height ? box.top - frame.top - tip.offsetHeight - 6 : below}px`;
  });
  reader.addEventListener("pointerleave", hide);
  reader.addEventListener("scroll", hide, { passive: true });
}

function probability(bits) {
  const share = 2 ** -bits;
  if (share >= 0.001) return `${(100 * share).toPrecision(3)}\u202f%`;
  return `1 in ${2 ** bits < 1e6 ? whole(2 ** bits) : (2 ** bits).toExponential(1)}`;
}

async function start() {
  const facts = JSON.parse(byId("facts").textContent);
  const series = await Series.unpack(facts, byId("data").textContent);
  const state = new State(series);
  byId("main").hidden = false;
  showHeader(series, facts);
  showFigures(series, facts);
  byId("histogram").querySelector("svg").shade((bits) => state.levelOfBits(bits));
  connectControls(series, state);
  state.reader = new Reader(byId("reader"), series, state);
  connectTokenTip(series, byId("reader"));
  new ChartInput(new SurpriseChart(byId("chart"), series, state), series, state);
  new Overview(byId("overview"), series, state);
  new PassageList(byId("passage-list"), series, state, facts.passages);
  new Search(byId("search"), series, state);
  state.view(0, series.length);
  window.report = { facts, series, state }; // for the console
}

start().catch((error) => {
  byId("failure").textContent = `This page can't be shown: ${error.message}. It needs a browser of 2023 or newer.`;
  byId("failure").hidden = false;
  throw error;
});
