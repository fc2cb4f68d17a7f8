// The scores: unpacked into typed arrays, with running sums that answer for any stretch of the text at once.

class Series {
  constructor(facts, buffer) {
    const n = facts.tokens;
    this.length = n;
    this.firstToken = facts.firstToken;
    this.isText = facts.isText;
    this.unscored = facts.unscored;
    this.stepsABit = facts.stepsABit;
    this.steps = new Uint16Array(buffer, 4 * n, n);
    this.text = new Uint8Array(buffer, 6 * n);
    this.bytesBefore = new Uint32Array(n + 1);
    this.bitsBefore = new Float64Array(n + 1);
    this.scoredBefore = new Uint32Array(n + 1);
    const lengths = new Uint32Array(buffer, 0, n);
    for (let i = 0; i < n; i++) {
      const isScored = this.steps[i] !== this.unscored;
      this.bytesBefore[i + 1] = this.bytesBefore[i] + lengths[i];
      this.bitsBefore[i + 1] = this.bitsBefore[i] + (isScored ? this.steps[i] / this.stepsABit : 0);
      this.scoredBefore[i + 1] = this.scoredBefore[i] + isScored;
    }
  }

  static async unpack(facts, base64) {
    const characters = atob(base64), packed = new Uint8Array(characters.length);
    for (let i = 0; i < packed.length; i++) packed[i] = characters.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Series(facts, await new Response(stream).arrayBuffer());
  }

  /** Bits of token i; null if it has no score. */
  bits(i) {
    return this.steps[i] === this.unscored ? null : this.steps[i] / this.stepsABit;
  }

  /** Bits a byte, or bits a token, of the tokens from `start` to `end` (excluded); NaN where there are none. */
  mean(start, end, unit) {
    const sizes = unit === "byte" ? this.bytesBefore : this.scoredBefore;
    return (this.bitsBefore[end] - this.bitsBefore[start]) / (sizes[end] - sizes[start] || NaN);
  }

  /** The mean over the `window` tokens around each of `columns` places, evenly spread from token `from` to `to`. */
  smoothed(from, to, columns, window, unit) {
    const values = new Float64Array(columns);
    for (let column = 0; column < columns; column++) {
      const centre = from + ((column + 0.5) * (to - from)) / columns;
      const start = Math.min(this.length - 1, Math.max(0, Math.round(centre - window / 2)));
      values[column] = this.mean(start, Math.max(start + 1, Math.min(this.length, Math.round(centre + window / 2))), unit);
    }
    return values;
  }

  /** The token that a byte of the text belongs to. */
  tokenAtByte(byte) {
    let low = 0, high = this.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.bytesBefore[middle] <= byte) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Whether token i begins with a character, not within one; the end of the text does. */
  beginsCharacter(i) {
    const byte = this.bytesBefore[i];
    return byte === this.text.length || (this.text[byte] & 0xc0) !== 0x80;
  }

  /** The tokens `start` to `end`, and as many more on either side as whole characters need. */
  wholeCharacters(start, end) {
    while (start > 0 && !this.beginsCharacter(start)) start--;
    while (end < this.length && !this.beginsCharacter(end)) end++;
    return [start, end];
  }

  /** The text of the tokens `start` to `end` (excluded), for people to read. */
  textOf(start, end) {
    const from = this.bytesBefore[start];
    let to = this.bytesBefore[end];
    if (to > from && this.text[to - 1] === RETURN && this.text[to] === NEWLINE) to--; // a line end is shown once
    return readable(decoder.decode(this.text.subarray(from, to)));
  }

  /** About those tokens' text on one line, in whole words: for glances. */
  excerpt(start, end) {
    [start, end] = this.wholeCharacters(Math.max(0, start), Math.min(this.length, end));
    for (let i = 0; i < 8 && start > 0 && !this.isBetweenWords(start); i++) start--;
    for (let i = 0; i < 8 && end < this.length && !this.isBetweenWords(end); i++) end++;
    [start, end] = this.wholeCharacters(start, end);
    return this.textOf(start, end).replace(/\s+/g, " ").trim();
  }

  isBetweenWords(token) {
    const byte = this.bytesBefore[token];
    return this.text[byte] <= SPACE || this.text[byte - 1] <= SPACE;
  }

  /** The bits that `share` of the scored tokens have less of; looks at no more than 50,000 of them. */
  quantile(share) {
    const every = Math.ceil(this.length / 50000);
    const sample = this.steps.filter((steps, i) => i % every === 0 && steps !== this.unscored).sort();
    return sample.length ? sample[Math.min(sample.length - 1, Math.floor(share * sample.length))] / this.stepsABit : 0;
  }
}

const NEWLINE = 0x0a, RETURN = 0x0d, SPACE = 0x20;
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Control characters as their pictures, but for line ends and tabs; U+FFFD for bytes that were no UTF-8. */
function readable(text) {
  return text.replace(/\r\n/g, "\n").replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (character) => {
    const code = character.charCodeAt(0);
    if (code === 0x1a) return "\ufffd";
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
  });
}
