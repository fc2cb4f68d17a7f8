// Finding words in the text, whatever their case.

const MOST_MATCHES = 10000;
const CHECKPOINT = 4096; // UTF-16 units between two places whose byte is known

class Search {
  constructor(form, series, state) {
    this.series = series;
    this.state = state;
    this.input = form.querySelector("input");
    this.output = form.querySelector("output");
    this.current = -1;
    this.input.addEventListener("input", () => this.find());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.shiftKey) {
        event.preventDefault();
        this.step(-1);
      }
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.step(1);
    });
    byId("previous").addEventListener("click", () => this.step(-1));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT)$/.test(document.activeElement?.tagName)) return;
      event.preventDefault();
      this.input.select();
    });
  }

  /** Goes to the first match at or after the text on the screen. */
  find() {
    const query = this.input.value;
    this.matches = query ? this.matchesOf(query) : [];
    this.state.found(this.matches.map(([start]) => start));
    const here = this.state.seen?.[0] ?? 0;
    const next = this.matches.findIndex(([start]) => start >= here);
    this.current = next < 0 ? 0 : next;
    this.show();
  }

  step(by) {
    if (!this.matches?.length) return;
    this.current = (this.current + by + this.matches.length) % this.matches.length;
    this.show();
  }

  show() {
    const count = this.matches.length;
    const many = count === MOST_MATCHES ? "+" : "";
    this.output.textContent = !this.input.value ? "" : count ? `${whole(this.current + 1)} of ${whole(count)}${many}` : "not found";
    if (count) this.state.jump(...this.matches[this.current]);
  }

  /** The tokens, [start, end], of each match. */
  matchesOf(query) {
    this.index ??= new TextIndex(this.series.text);
    const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
    const found = [];
    for (let match; found.length < MOST_MATCHES && (match = pattern.exec(this.index.string)); ) {
      const start = this.series.tokenAtByte(this.index.byteAt(match.index));
      found.push([start, this.series.tokenAtByte(this.index.byteAt(match.index + match[0].length) - 1) + 1]);
    }
    return found;
  }
}

/** The text as a string, and which byte each of its places is. */
class TextIndex {
  constructor(text) {
    this.string = decoder.decode(text);
    this.checkpoints = [0];
    for (let at = 0, byte = 0; at < this.string.length; at++) {
      byte += bytesOf(this.string.charCodeAt(at));
      if ((at + 1) % CHECKPOINT === 0) this.checkpoints.push(byte);
    }
  }

  byteAt(at) {
    const checkpoint = Math.floor(at / CHECKPOINT);
    let byte = this.checkpoints[checkpoint];
    for (let i = checkpoint * CHECKPOINT; i < at; i++) byte += bytesOf(this.string.charCodeAt(i));
    return byte;
  }
}

/** UTF-8 bytes of a UTF-16 unit; the two halves of a pair have two each. */
function bytesOf(unit) {
  if (unit < 0x80) return 1;
  return unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 2 : 3;
}
