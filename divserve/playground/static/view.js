// The tokens of an answer on the page, and the strip chart over them. The answer is one stop of
// the Tab key; arrow keys go from token to token.

import { h } from "./dom.js";
import { valueOf, about, shown } from "./figures.js";
import { level } from "./scale.js";
import { visible } from "./text.js";
import "./strip.js";

const TOKEN_PX = 40;
const MOST_LINES = 14;

const card = () => document.querySelector("token-card");

export class AnswerView extends HTMLElement {
  #strip = document.createElement("strip-chart");
  #list = h("div", { class: "tokens", role: "listbox", "aria-orientation": "horizontal" });
  #tokens = [];
  #levels = [];
  #room = 0;
  #shown = null;
  #name = "";
  /** What the guide of the answer lacks: "document", "instruction" or "". */
  lacks = "";

  connectedCallback() {
    this.append(this.#strip, this.#list);
    this.#strip.clear();
    this.addEventListener("pointermove", (event) => {
      // Not where the page moved under a pointer at rest, as the arrow keys make it.
      if (event.movementX || event.movementY) this.#point(event.target);
    });
    this.addEventListener("pointerleave", () => this.#leave());
    this.#list.addEventListener("focusin", (event) => this.#point(event.target));
    this.#list.addEventListener("focusout", () => this.#leave());
    this.#list.addEventListener("click", ({ target }) => target.closest(".token")?.focus());
    this.#list.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Empties the answer, of which `room` tokens may come. */
  begin(label, room) {
    this.#list.replaceChildren();
    this.#list.setAttribute("aria-label", label);
    this.#tokens = [];
    this.#levels = [];
    this.#room = room;
    // Kept free, so that nothing moves while the answer comes.
    const perLine = Math.max(4, this.clientWidth / TOKEN_PX);
    this.parentElement.style.setProperty("--lines", Math.min(MOST_LINES, Math.ceil(room / perLine) + 1));
    this.#strip.clear();
  }

  add(tokens) {
    for (const token of tokens) {
      const index = this.#tokens.push(token) - 1;
      // Spaces before a word stay uncoloured, so that none hang coloured at the end of a line.
      const [, space, word] = token.text.match(/^( *)(.*)$/s);
      this.#list.append(h("span", {
        class: "token", role: "option", "aria-selected": "false", tabindex: index ? -1 : 0,
        "data-index": index,
      }, ...(word ? [space, h("span", { class: "word" }, word)] : [h("span", { class: "word" }, space)])));
    }
    this.#paint(this.#tokens.length - tokens.length);
  }

  /** No more tokens come: the strip takes its whole width. */
  end() {
    this.#room = 0;
    this.#tokens.forEach(({ ends }, i) => {
      if (!ends) return;
      this.#list.children[i].classList.add("is-end");
      this.#list.children[i].replaceChildren(h("span", { class: "word" }, "end"));
    });
    this.colour(this.#name);
  }

  /** Colours all tokens by a figure. */
  colour(name) {
    this.#name = name;
    this.#paint(0);
  }

  #paint(first) {
    for (let i = first; i < this.#tokens.length; i++) {
      const value = this.#levels[i] = level(this.#name, valueOf(this.#tokens[i], this.#name));
      const element = this.#list.children[i];
      element.classList.toggle("has-level", value !== null);
      element.style.setProperty("--level", value ?? 0);
      element.setAttribute("aria-label", this.#spoken(i));
    }
    this.#strip.draw(this.#levels, this.#room, first);
  }

  #spoken(index) {
    const token = this.#tokens[index];
    const value = valueOf(token, this.#name);
    const number = value === null ? "" : `, ${about(this.#name).label} ${shown(this.#name, value)}`;
    return `${visible(token.text)}${number}`;
  }

  #point(target) {
    const pointed = target.closest("[data-index]");
    if (!pointed) return;
    const number = Number(pointed.dataset.index);
    if (number === this.#shown) {
      card().stay();
      return;
    }
    this.#shown = number;
    const element = this.#list.children[number];
    this.#strip.mark(number);
    this.#mark(element);
    card().show(this.#tokens[number], number, this.#tokens.length, element, this.lacks);
  }

  #mark(element) {
    for (const other of this.#list.querySelectorAll(".is-marked")) {
      other.classList.remove("is-marked");
      other.removeAttribute("aria-describedby");
    }
    element?.classList.add("is-marked");
    element?.setAttribute("aria-describedby", "token-sentence");
  }

  #leave() {
    this.#shown = null;
    this.#strip.mark(null);
    this.#mark(null);
    card().hideSoon();
  }

  #key(event) {
    const last = this.#tokens.length - 1;
    const from = Number(event.target.dataset.index);
    const to = { ArrowRight: from + 1, ArrowDown: from + 1, ArrowLeft: from - 1, ArrowUp: from - 1,
      Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = this.#list.children[Math.min(last, Math.max(0, to))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

customElements.define("answer-view", AnswerView);
