// Pointer, wheel and keys on the chart.

class ChartInput {
  constructor(chart, series, state) {
    this.chart = chart;
    this.series = series;
    this.state = state;
    this.tip = chart.host.querySelector(".tip");
    chart.host.addEventListener("pointerdown", (event) => this.press(event));
    chart.host.addEventListener("pointermove", (event) => this.hover(event));
    chart.host.addEventListener("pointerleave", () => this.leave());
    chart.host.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    chart.host.addEventListener("keydown", (event) => this.key(event));
  }

  /** A press that moves selects what to look at more closely; one that doesn't goes to the text. */
  press(event) {
    if (event.button !== 0) return;
    const { chart, state } = this, start = chart.tokenAt(event);
    const move = (moved) => {
      chart.selection = Math.abs(moved.clientX - event.clientX) > 4 ? [start, chart.tokenAt(moved)] : undefined;
      chart.canvas.redraw();
    };
    drag(chart.host, event, move, (released) => {
      const selected = chart.selection;
      chart.selection = undefined;
      if (released.type === "pointercancel") chart.canvas.redraw();
      else if (selected) state.view(Math.min(...selected), Math.max(...selected));
      else state.jump(Math.min(this.series.length - 1, Math.floor(start)));
    });
  }

  hover(event) {
    const { chart, series, state, tip } = this;
    chart.pointed = chart.tokenAt(event);
    const token = Math.min(series.length - 1, Math.floor(chart.pointed));
    const reach = chart.showsTokens ? 0 : state.window / 2;
    const end = Math.max(token + 1, Math.min(series.length, Math.round(token + reach)));
    const value = series.mean(Math.max(0, Math.round(token - reach)), end, state.unit);
    const excerpt = series.excerpt(token - 10, token + 22);
    tip.replaceChildren(
      element("b", {}, Number.isNaN(value) ? "no score" : `${value.toFixed(2)} ${UNITS[state.unit]}`),
      element("div", {}, place(series, token)),
      element("q", { dir: "auto" }, `… ${excerpt} …`),
    );
    tip.hidden = false;
    const x = chart.x(chart.pointed), wide = tip.offsetWidth;
    tip.style.left = `${x + 14 + wide > chart.canvas.width ? Math.max(0, x - 14 - wide) : x + 14}px`;
    tip.style.top = "14px";
    chart.canvas.redraw();
  }

  leave() {
    this.chart.pointed = undefined;
    this.tip.hidden = true;
    this.chart.canvas.redraw();
  }

  /** Zooms where the page itself has nothing to scroll; elsewhere with Ctrl, as everywhere. */
  wheel(event) {
    const scrolls = document.documentElement.scrollHeight > innerHeight + 1;
    if (scrolls && !event.ctrlKey) return;
    event.preventDefault();
    const { chart, state } = this;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      state.pan((event.deltaX / chart.plotWidth) * (state.to - state.from));
    } else {
      state.zoom(Math.exp(event.deltaY * (event.deltaMode ? 0.05 : 0.002)), chart.tokenAt(event));
    }
  }

  key(event) {
    const { state } = this;
    const tenth = (state.to - state.from) / 10;
    const actions = {
      ArrowLeft: () => state.pan(-tenth),
      ArrowRight: () => state.pan(tenth),
      Home: () => state.pan(-this.series.length),
      End: () => state.pan(this.series.length),
      "+": () => state.zoom(0.5),
      "=": () => state.zoom(0.5),
      "-": () => state.zoom(2),
      0: () => state.view(0, this.series.length),
      Escape: () => state.view(0, this.series.length),
      Enter: () => state.jump(Math.floor((state.from + state.to) / 2)),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}
