// The whole text as one strip of colours, with a window on it that is what the chart shows.

class Overview {
  constructor(host, series, state) {
    this.host = host;
    this.series = series;
    this.state = state;
    this.canvas = new Canvas(host, (context, colour) => this.draw(context, colour));
    state.onchange(() => this.canvas.redraw());
    host.addEventListener("pointerdown", (event) => this.press(event));
  }

  get plotWidth() {
    return Math.max(1, this.canvas.width - MARGIN.left - MARGIN.right);
  }

  x(token) {
    return MARGIN.left + (token / this.series.length) * this.plotWidth;
  }

  draw(context, colour) {
    const { series, state } = this;
    const columns = Math.ceil(this.plotWidth), height = this.canvas.height - 12;
    const values = series.smoothed(0, series.length, columns, Math.max(1, (2 * series.length) / columns), state.unit);
    const known = [...values].filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
    const at = (share) => known[Math.min(known.length - 1, Math.floor(share * known.length))] ?? 0;
    const low = at(0.02), high = at(0.98);
    const colours = Array.from({ length: 8 }, (_, level) => (level ? colour(`s${level}`) : colour("card")));
    values.forEach((value, column) => {
      if (Number.isNaN(value)) return;
      const share = high > low ? (value - low) / (high - low) : 0;
      context.fillStyle = colours[Math.max(0, Math.min(7, Math.round(share * 7)))];
      context.fillRect(MARGIN.left + column, 6, 1.5, height);
    });
    context.strokeStyle = colour("line");
    context.strokeRect(MARGIN.left + 0.5, 6.5, this.plotWidth - 1, height - 1);
    this.drawWindow(context, colour, height);
    this.drawMarks(context, colour, height);
  }

  /** What the chart doesn't show is dimmed. */
  drawWindow(context, colour, height) {
    const a = this.x(this.state.from), b = Math.max(this.x(this.state.to), a + 3);
    if (this.state.from <= 0 && this.state.to >= this.series.length) return;
    context.fillStyle = colour("card");
    context.globalAlpha = 0.6;
    context.fillRect(MARGIN.left, 6, a - MARGIN.left, height);
    context.fillRect(b, 6, MARGIN.left + this.plotWidth - b, height);
    context.globalAlpha = 1;
    context.strokeStyle = colour("ink");
    context.lineWidth = 1.5;
    context.strokeRect(a, 5, b - a, height + 2);
  }

  /** Matches of the search above the strip, the place of the text under it. */
  drawMarks(context, colour, height) {
    context.fillStyle = colour("focus");
    for (const token of this.state.matches) context.fillRect(this.x(token) - 0.5, 0, 1.5, 5);
    if (!this.state.seen) return;
    const x = Math.min(MARGIN.left + this.plotWidth - 1, this.x((this.state.seen[0] + this.state.seen[1]) / 2));
    context.fillStyle = colour("ink");
    context.beginPath();
    context.moveTo(x, height + 5);
    context.lineTo(x - 5, height + 12);
    context.lineTo(x + 5, height + 12);
    context.fill();
  }

  /** Drags the window; a press beside it brings it there. Where all is shown, there is no window, but a text to go to. */
  press(event) {
    if (event.button !== 0) return;
    const { state, series } = this;
    const tokenAt = (at) => {
      const x = at.clientX - this.host.getBoundingClientRect().left - MARGIN.left;
      return (Math.min(this.plotWidth, Math.max(0, x)) / this.plotWidth) * series.length;
    };
    if (state.to - state.from >= series.length) {
      state.jump(Math.min(series.length - 1, Math.floor(tokenAt(event))));
      return;
    }
    let last = tokenAt(event);
    if (last < state.from || last > state.to) state.pan(last - (state.from + state.to) / 2);
    this.host.classList.add("moving");
    const move = (moved) => {
      state.pan(tokenAt(moved) - last);
      last = tokenAt(moved);
    };
    drag(this.host, event, move, () => this.host.classList.remove("moving"));
  }
}
