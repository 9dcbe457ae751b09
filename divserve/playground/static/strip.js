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
   * Draws bars, and keeps those that did not change.
   *
   * @param levels of the tokens, between 0 and 1; null: the token has no such figure
   * @param room number of bars that fit
   */
  draw(levels, room) {
    const slots = Math.max(room, levels.length, FEWEST);
    this.#svg.setAttribute("viewBox", `0 0 ${slots} ${HEIGHT}`);
    while (this.#bars.length > levels.length) this.#bars.pop().remove();
    levels.forEach((level, i) => {
      if (!this.#bars[i]) {
        this.#bars[i] = svg("rect", { x: i + 0.08, width: 0.84, rx: 0.15, "data-index": i });
        this.#svg.append(this.#bars[i]);
      }
      const height = level === null ? 0 : LEAST + level * (HEIGHT - LEAST);
      this.#bars[i].setAttribute("height", height);
      this.#bars[i].setAttribute("y", HEIGHT - height);
      this.#bars[i].style.setProperty("--level", level ?? 0);
    });
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
