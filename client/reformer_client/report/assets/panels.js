// Figures, the histogram that is the legend of the shading, and the passages.

function showHeader(series, facts) {
  byId("title").textContent = facts.title;
  const parts = [];
  if (facts.model) {
    const { name, parameters, dtype, device, numHashes, serverVersion } = facts.model;
    parts.push(`scored by the model “${name}” (${short(parameters)} parameters, ${dtype} on ${device}, ${numHashes} hash rounds)`);
    parts.push(`reformer-serve ${serverVersion}`);
  }
  parts.push(new Date(facts.created).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }));
  if (facts.firstToken) parts.push(`a part of a document, from token ${whole(facts.firstToken)} on`);
  byId("about").textContent = parts.join(" · ");
  if (!series.isText) byId("reading-title").textContent = "Token ids (these tokens are no text)";
}

function showFigures(series, facts) {
  const list = element("dl"), bytes = series.text.length;
  const add = (name, value, kind = "") => {
    list.append(element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value)));
  };
  const figure = (number) => (Number.isFinite(number) ? number.toFixed(3) : "–");
  if (series.isText) add("bits per byte", figure(series.mean(0, series.length, "byte")), "main");
  add("bits per token", figure(series.mean(0, series.length, "token")), "main");
  add("perplexity a token", facts.perplexity === null ? "–" : facts.perplexity.toPrecision(4));
  add("tokens", whole(series.length));
  if (series.isText) {
    add(`bytes, ${(bytes / series.length).toFixed(2)} a token`, whole(bytes));
    add(`compressible to ${percent(facts.bits / 8 / bytes)}`, size(facts.bits / 8));
  }
  if (facts.seconds) add(`read, ${whole(series.length / facts.seconds)} tokens/s`, duration(facts.seconds));
  byId("figures").append(list, histogram(series));
}

const SVG = "http://www.w3.org/2000/svg";

/** How many tokens have how many bits; the bars have the colours of the text. */
function histogram(series) {
  const bins = 20, width = 300, height = 60, counts = new Array(bins + 1).fill(0);
  const binBits = Math.max(0.25, Math.ceil(series.quantile(0.98) / bins / 0.25) * 0.25);
  let scored = 0;
  for (let i = 0; i < series.length; i++) {
    if (series.steps[i] === series.unscored) continue;
    scored++;
    counts[Math.min(bins, Math.floor(series.steps[i] / series.stepsABit / binBits))]++;
  }
  const most = Math.max(1, ...counts), step = width / (bins + 1);
  const make = (name, attributes, text = "") => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height + 16}`, role: "img", "aria-label": "Histogram of the tokens' surprise" });
  counts.forEach((count, bin) => {
    const tall = (count / most) * height;
    const bar = make("rect", { x: bin * step + 0.5, y: height - tall, width: step - 1, height: tall });
    const range = bin < bins ? `${bin * binBits} to ${(bin + 1) * binBits} bits` : `${bins * binBits} bits and more`;
    bar.append(make("title", {}, `${range}: ${whole(count)} tokens, ${percent(count / (scored || 1))}`));
    svg.append(bar);
    if (bin % 4 === 0) svg.append(make("text", { x: bin * step + (bin ? 0 : 4), y: height + 13 }, bin * binBits + (bin === bins ? "+" : "")));
  });
  svg.shade = (level) => counts.forEach((_, bin) => svg.querySelectorAll("rect")[bin].setAttribute("fill", `var(--s${level((bin + 0.5) * binBits)})`));
  return element("figure", { id: "histogram" }, svg, element("figcaption", {}, "bits of a token, and how many have them"));
}

/** The list of passages, which jump to their place in the text. */
class PassageList {
  constructor(list, series, state, passages) {
    this.list = list;
    this.series = series;
    this.state = state;
    this.passages = passages;
    for (const input of document.querySelectorAll("#extreme input")) {
      input.addEventListener("change", () => this.show(input.value));
    }
    this.show("most");
  }

  show(extreme) {
    this.list.className = extreme;
    const passages = this.passages[extreme];
    this.list.replaceChildren(...passages.map((passage) => element("li", {}, this.button(passage))));
    if (!passages.length) this.list.append(element("li", { class: "none" }, "The text is too short to have passages."));
  }

  button({ start, end, mean }) {
    const { series, state } = this;
    const unit = series.isText ? UNITS.byte : UNITS.token;
    const meta = element("span", { class: "meta" }, element("b", { title: unit }, mean.toFixed(2)), place(series, start));
    const button = element("button", { title: unit }, meta, element("span", { class: "excerpt", dir: "auto" }, series.excerpt(start, end)));
    button.addEventListener("click", () => {
      this.list.querySelector("[aria-current]")?.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      state.jump(start, end);
    });
    return button;
  }
}
