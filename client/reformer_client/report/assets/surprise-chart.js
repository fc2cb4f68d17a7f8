// The smoothed line, and single tokens when there is room for them.

const FEWEST_TOKENS = 12; // the closest look
const BAR_PIXELS = 5; // from this width on, each token is a bar
const LABEL_PIXELS = 34; // and from this one on, it has its text under it

class SurpriseChart {
  constructor(host, series, state) {
    this.series = series;
    this.state = state;
    this.host = host;
    this.tip = host.querySelector(".tip");
    this.canvas = new Canvas(host, (context, colour) => this.draw(context, colour));
    state.onchange(() => this.canvas.redraw());
  }

  get plotWidth() {
    return Math.max(1, this.canvas.width - MARGIN.left - MARGIN.right);
  }

  get showsTokens() {
    return this.plotWidth / (this.state.to - this.state.from) >= BAR_PIXELS;
  }

  tokenAt(event) {
    const x = event.clientX - this.host.getBoundingClientRect().left - MARGIN.left;
    const { from, to } = this.state;
    return Math.min(to, Math.max(from, from + (x / this.plotWidth) * (to - from)));
  }

  x(token) {
    return MARGIN.left + ((token - this.state.from) / (this.state.to - this.state.from)) * this.plotWidth;
  }

  draw(context, colour) {
    const { series, state } = this;
    const bottom = this.canvas.height - MARGIN.bottom, top = MARGIN.top + (this.showsTokens ? 8 : 0);
    const right = MARGIN.left + this.plotWidth;
    const values = this.showsTokens ? this.tokenValues() : this.lineValues();
    const known = values.filter((value) => !Number.isNaN(value));
    const mean = series.mean(0, series.length, state.unit);
    let low = Math.min(mean, ...known), high = Math.max(mean, ...known);
    if (Number.isNaN(mean)) [low, high] = [0, 1];
    const room = (high - low) * 0.08 || 0.5;
    low = this.showsTokens ? 0 : Math.max(0, low - room);
    high += room;
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);

    this.drawSeen(context, colour, top, bottom);
    this.drawAxes(context, colour, low, high, y, bottom, right);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, 0, this.plotWidth, this.canvas.height);
    context.clip();
    if (this.showsTokens) this.drawTokens(context, colour, values, mean, y, bottom);
    else this.drawLine(context, colour, values, y, y(mean), top, bottom);
    context.restore();
    this.drawMean(context, colour, y(mean), mean, right);
    if (this.selection) {
      const [a, b] = this.selection.map((token) => this.x(token));
      context.fillStyle = colour("focus");
      context.globalAlpha = 0.18;
      context.fillRect(Math.min(a, b), top, Math.abs(b - a), bottom - top);
      context.globalAlpha = 1;
    }
    if (this.pointed !== undefined) {
      context.strokeStyle = colour("soft");
      context.beginPath();
      context.moveTo(this.x(this.pointed), top);
      context.lineTo(this.x(this.pointed), bottom);
      context.stroke();
    }
  }

  /** A value for each pixel. */
  lineValues() {
    const { from, to, unit } = this.state;
    return this.series.smoothed(from, to, Math.ceil(this.plotWidth), this.state.window, unit);
  }

  /** A value for each token in view. */
  tokenValues() {
    const first = Math.floor(this.state.from), last = Math.min(this.series.length, Math.ceil(this.state.to));
    return Array.from({ length: last - first }, (_, i) => this.series.mean(first + i, first + i + 1, this.state.unit));
  }

  drawLine(context, colour, values, y, meanY, top, bottom) {
    const line = new Path2D(), area = new Path2D();
    let drawing = false, lastX = MARGIN.left;
    values.forEach((value, column) => {
      const x = MARGIN.left + column + 0.5;
      if (Number.isNaN(value)) return;
      line[drawing ? "lineTo" : "moveTo"](x, y(value));
      if (!drawing) area.moveTo(x, meanY);
      area.lineTo(x, y(value));
      drawing = true;
      lastX = x;
    });
    area.lineTo(lastX, meanY);
    for (const [name, from, to] of [["warm", top - 10, meanY], ["cool", meanY, bottom]]) {
      context.save();
      context.beginPath();
      context.rect(0, from, this.canvas.width, to - from);
      context.clip();
      context.fillStyle = context.strokeStyle = colour(name);
      context.globalAlpha = 0.28;
      context.fill(area);
      context.globalAlpha = 1;
      context.lineWidth = 1.3;
      context.lineJoin = "round";
      context.stroke(line);
      context.restore();
    }
  }

  drawTokens(context, colour, values, mean, y, bottom) {
    const first = Math.floor(this.state.from);
    const width = this.plotWidth / (this.state.to - this.state.from);
    context.textAlign = "center";
    values.forEach((value, i) => {
      if (Number.isNaN(value)) return;
      const x = this.x(first + i);
      const gap = Math.min(3, width * 0.15);
      context.fillStyle = context.strokeStyle = colour(value > mean ? "warm" : "cool");
      context.globalAlpha = 0.28;
      context.fillRect(x + gap, y(value), width - 2 * gap, bottom - y(value));
      context.globalAlpha = 1;
      context.strokeRect(x + gap, y(value), width - 2 * gap, bottom - y(value));
      if (width < LABEL_PIXELS) return;
      context.fillStyle = colour("ink");
      const label = this.series.textOf(first + i, first + i + 1).replace(/\n/g, "⏎").replace(/\t/g, "⇥").trim();
      const room = Math.max(1, Math.floor(width / 6.5));
      const shown = [...label].slice(0, room).join("");
      context.fillText(shown || "␣", x + width / 2, Math.max(11, y(value) - 4));
    });
  }

  /** The part of the text that is on the screen, below. */
  drawSeen(context, colour, top, bottom) {
    const { seen, from, to } = this.state;
    if (!seen || (seen[0] <= from && seen[1] >= to - 1)) return;
    const a = Math.max(MARGIN.left, this.x(seen[0])), b = Math.min(MARGIN.left + this.plotWidth, this.x(seen[1]));
    if (b < MARGIN.left || a > MARGIN.left + this.plotWidth) return;
    context.fillStyle = colour("ink");
    context.globalAlpha = 0.1;
    context.fillRect(a, top, Math.max(2, b - a), bottom - top);
    context.globalAlpha = 1;
  }

  drawAxes(context, colour, low, high, y, bottom, right) {
    context.fillStyle = colour("soft");
    context.strokeStyle = colour("line");
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const { values, step } = ticks(low, high, 4);
    for (const value of values) {
      context.beginPath();
      context.moveTo(MARGIN.left, Math.round(y(value)) + 0.5);
      context.lineTo(right, Math.round(y(value)) + 0.5);
      context.stroke();
      context.fillText(value.toFixed(step < 0.1 ? 2 : step < 1 ? 1 : 0), MARGIN.left - 6, y(value));
    }
    context.textBaseline = "alphabetic";
    const { firstToken } = this.series;
    const along = ticks(this.state.from + firstToken, this.state.to + firstToken, this.plotWidth / 90);
    for (const token of along.values.filter(Number.isInteger)) {
      const x = this.x(token - firstToken), label = along.step < 1000 ? whole(token) : short(token);
      const half = context.measureText(label).width / 2;
      context.textAlign = x - half < 4 ? "left" : x + half > this.canvas.width ? "right" : "center";
      context.fillText(label, context.textAlign === "right" ? right : x, bottom + 15);
    }
  }

  drawMean(context, colour, y, mean, right) {
    if (Number.isNaN(mean)) return;
    context.strokeStyle = colour("soft");
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(MARGIN.left, Math.round(y) + 0.5);
    context.lineTo(right, Math.round(y) + 0.5);
    context.stroke();
    context.setLineDash([]);
    const label = `mean ${mean.toFixed(2)}`, width = context.measureText(label).width;
    context.globalAlpha = 0.85;
    context.fillStyle = colour("card");
    context.fillRect(right - width - 8, y - 17, width + 6, 14);
    context.globalAlpha = 1;
    context.fillStyle = colour("ink");
    context.textAlign = "right";
    context.fillText(label, right - 5, y - 6);
  }
}
