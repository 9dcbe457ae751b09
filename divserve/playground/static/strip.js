// The strip chart over an answer: one bar for each token, as high as its figure.

import { svg } from "./dom.js";

const HEIGHT = 40;
const LEAST = 1.5;
const FEWEST = 12;

/** An SVG that is drawn anew by `draw`; its size on the page never changes. */
export class StripChart extends HTMLElement {
  #svg = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  #bars = [];

  connectedCallback() {
    this.append(this.#svg);
  }

  /**
   * Draws the bars of tokens.
   *
   * @param levels of all tokens, between 0 and 1; null: the token has no such figure
   * @param room number of bars that fit
   * @param first bars before this one stay as they are
   */
  draw(levels, room, first = 0) {
    const slots = Math.max(room, levels.length, FEWEST);
    this.#svg.setAttribute("viewBox", `0 0 ${slots} ${HEIGHT}`);
    while (this.#bars.length > levels.length) this.#bars.pop().remove();
    for (let i = first; i < levels.length; i++) this.#draw(i, levels[i]);
  }

  #draw(index, level) {
    if (!this.#bars[index]) {
      const bar = svg("rect", { x: index + 0.08, width: 0.84, rx: 0.15, "data-index": index });
      this.#bars[index] = bar;
      this.#svg.append(bar);
    }
    const height = level === null ? 0 : LEAST + level * (HEIGHT - LEAST);
    this.#bars[index].setAttribute("height", height);
    this.#bars[index].setAttribute("y", HEIGHT - height);
    this.#bars[index].style.setProperty("--level", level ?? 0);
  }

  /** Marks the bar of a token; null: none. */
  mark(index) {
    this.#bars.forEach((bar, i) => bar.classList.toggle("is-marked", i === index));
  }

  clear() {
    this.draw([], FEWEST);
  }
}

customElements.define("strip-chart", StripChart);
