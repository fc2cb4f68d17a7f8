// Drawing, and dragging on what was drawn.

const MARGIN = { left: 40, right: 10, top: 10, bottom: 22 }; // chart and strip have their tokens one above the other

/** A canvas that fills its element, in CSS pixels, and is drawn again when its size or the colours change. */
class Canvas {
  constructor(host, draw) {
    this.host = host;
    this.draw = draw;
    this.canvas = host.querySelector("canvas");
    this.width = this.height = 0;
    new ResizeObserver(() => this.redraw()).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** At the next frame, once. */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const ratio = window.devicePixelRatio || 1;
      this.width = this.host.clientWidth;
      this.height = this.host.clientHeight;
      this.canvas.width = Math.round(this.width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
      const context = this.canvas.getContext("2d");
      context.scale(ratio, ratio);
      const style = getComputedStyle(this.host);
      context.font = `11px ${style.fontFamily}`;
      this.draw(context, (name) => style.getPropertyValue(`--${name}`));
    });
  }
}

/** Follows a pointer that was pressed: `move` is called with each step, `end` with what released it. */
function drag(host, pressed, move, end) {
  const listening = new AbortController(), { signal } = listening;
  const release = (event) => {
    listening.abort();
    end(event);
  };
  host.setPointerCapture(pressed.pointerId);
  host.addEventListener("pointermove", move, { signal });
  host.addEventListener("pointerup", release, { signal });
  host.addEventListener("pointercancel", release, { signal });
}
