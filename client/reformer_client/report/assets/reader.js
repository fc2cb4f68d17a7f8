// The text, shaded by surprise: blocks of a few kilobytes, of which only those near the screen have any content.

const BLOCK_BYTES = 3000; // about a screen; a block ends at the last line end, else space, before one and a half of these
const BLOCK_TOKENS = 4096;

/** Where blocks begin, in tokens, and the end of the last one. */
function cutIntoBlocks(series) {
  const { text, bytesBefore, length } = series;
  const starts = [0];
  while (starts.at(-1) < length) {
    const start = starts.at(-1);
    let end = start + 1;
    while (end < length && end - start < BLOCK_TOKENS && bytesBefore[end + 1] - bytesBefore[start] <= 1.5 * BLOCK_BYTES) end++;
    const ends = (after) => {
      const fewest = start + ((end - start) >> 1);
      for (let i = end; i > fewest; i--) if (text[bytesBefore[i] - 1] === after) return i;
      return undefined;
    };
    if (end < length) end = ends(NEWLINE) ?? ends(SPACE) ?? end;
    while (end < length && !series.beginsCharacter(end)) end++;
    starts.push(end);
  }
  return starts;
}

class Reader {
  constructor(host, series, state) {
    this.host = host;
    this.series = series;
    this.state = state;
    this.starts = cutIntoBlocks(series);
    this.target = [0, 0];
    this.blocks = this.starts.slice(0, -1).map((_, index) => {
      const block = element("div", { class: "block", dir: "auto" });
      block.index = index;
      return block;
    });
    if (looksLikeCode(series)) host.classList.add("code");
    host.append(...this.blocks);
    this.observer = new IntersectionObserver((entries) => this.turn(entries), { root: host, rootMargin: "150% 0px" });
    for (const block of this.blocks) this.observer.observe(block);
    host.addEventListener("scroll", () => this.look(), { passive: true });
    new ResizeObserver(() => this.resized()).observe(host);
  }

  /** How high blocks are that were not shown yet: from the lengths of their lines. */
  estimateHeights() {
    const style = getComputedStyle(this.host);
    const lineHeight = parseFloat(style.lineHeight) || 26;
    const width = this.host.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const context = document.createElement("canvas").getContext("2d");
    context.font = `${style.fontSize} ${style.fontFamily}`;
    const sample = "the quick brown fox jumps over the lazy dog, and so on ";
    const columns = Math.max(8, width / (context.measureText(sample).width / sample.length));
    const { text, bytesBefore } = this.series;
    this.blocks.forEach((block, index) => {
      const end = bytesBefore[this.starts[index + 1]];
      let lines = 0, lineStart = bytesBefore[this.starts[index]];
      while (lineStart < end) {
        let lineEnd = text.indexOf(NEWLINE, lineStart);
        if (lineEnd < 0 || lineEnd > end) lineEnd = end;
        lines += Math.max(1, Math.ceil((lineEnd - lineStart) / columns));
        lineStart = lineEnd + 1;
      }
      block.style.height = block.firstChild ? "" : `${Math.max(1, lines) * lineHeight}px`;
    });
  }

  resized() {
    if (this.width === this.host.clientWidth) return this.look();
    const [first] = this.state.seen ?? [0];
    const isFirst = this.width === undefined;
    this.width = this.host.clientWidth;
    this.estimateHeights();
    if (isFirst) this.look();
    else this.show(first, "start");
  }

  turn(entries) {
    for (const { target: block, isIntersecting } of entries) {
      if (isIntersecting) this.fill(block);
      else if (block.firstChild) {
        block.style.height = `${block.offsetHeight}px`;
        block.replaceChildren();
      }
    }
    this.look();
  }

  fill(block) {
    if (block.firstChild) return;
    block.append(...this.spans(this.starts[block.index], this.starts[block.index + 1]));
    block.style.height = "";
  }

  /** An element for each token, or for as many of them as share a character. */
  spans(start, end) {
    const { series, state } = this, spans = [];
    for (let i = start; i < end; ) {
      let next = i + 1;
      while (next < end && !series.beginsCharacter(next)) next++;
      const span = element("span", { class: `token s${state.level(i, next)}` }, series.textOf(i, next));
      span.from = i;
      span.to = next;
      if (i < this.target[1] && next > this.target[0]) span.classList.add("target");
      spans.push(span);
      i = next;
    }
    return spans;
  }

  blockOf(token) {
    let low = 0, high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= token) low = middle;
      else high = middle - 1;
    }
    return this.blocks[low];
  }

  /** Marks the tokens and brings them into view. */
  mark(start, end) {
    this.target = [start, end];
    for (const span of this.host.querySelectorAll(".token")) {
      span.classList.toggle("target", span.from < end && span.to > start);
    }
    this.show(start, "center");
  }

  /** Brings a token to the middle ("center") or the top ("start"). */
  show(token, where) {
    const block = this.blockOf(token);
    for (let index = block.index - 1; index <= block.index + 1; index++) if (this.blocks[index]) this.fill(this.blocks[index]);
    const span = [...block.children].find((each) => each.to > token) ?? block;
    const above = span.getBoundingClientRect().top - this.host.getBoundingClientRect().top;
    this.host.scrollTop += above - (where === "center" ? this.host.clientHeight * 0.35 : 14);
    this.look();
  }

  /** Tells the others which tokens are on the screen. */
  look() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const { top, bottom } = this.host.getBoundingClientRect();
      const at = (y) => {
        const index = this.blocks.findIndex((block) => block.getBoundingClientRect().bottom > y);
        const block = this.blocks[index < 0 ? this.blocks.length - 1 : index];
        if (!block.firstChild) return this.starts[block.index];
        return ([...block.children].find((span) => span.getBoundingClientRect().bottom > y) ?? block.lastChild).from;
      };
      const first = at(top + 4);
      this.state.see(first, Math.max(first + 1, at(bottom - 4)));
    });
  }
}

/** Whether many lines begin with spaces or tabs: then columns matter, and letters have one width. */
function looksLikeCode(series) {
  let lines = 0, indented = 0;
  for (let at = series.text.indexOf(NEWLINE); at >= 0 && lines < 5000; at = series.text.indexOf(NEWLINE, at + 1)) {
    const next = series.text[at + 1];
    if (next === undefined || next === NEWLINE || next === RETURN) continue;
    lines++;
    indented += next === SPACE || next === 0x09;
  }
  return lines > 10 && indented > lines / 4;
}
