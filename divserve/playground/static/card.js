// The card of a token: a sentence, its numbers, and what each stream would have said.

import { h } from "./dom.js";
import { about, shown, valueOf } from "./figures.js";
import { place } from "./floating.js";
import { quoted, visible } from "./text.js";

const STREAMS = {
  primary: "The model",
  guide: "The other stream",
  "kl_temperature.guide": "The temperature's stream",
  amateur: "Small model",
  tuned: "Tuned small model",
  guided: "With the method",
};
const HIDE_MS = 150;

/** The one card of the page. */
export class TokenCard extends HTMLElement {
  #timer = 0;
  #anchor = null;

  connectedCallback() {
    this.popover = "manual";
    this.id = "token-card";
    this.addEventListener("pointerenter", () => this.stay());
    this.addEventListener("pointerleave", () => this.hideSoon());
    addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
    addEventListener("scroll", () => this.#place(), { passive: true });
  }

  /** Shows a token at its element; `lacks`: what its guide lacks ("document", "instruction", ""). */
  show(token, number, count, anchor, lacks) {
    clearTimeout(this.#timer);
    const names = lacks
      ? { ...STREAMS, primary: `With the ${lacks}`, guide: "Without it" } : STREAMS;
    this.replaceChildren(
      h("p", { class: "card-head" }, h("code", { class: "chip" }, visible(token.text)),
        h("span", { class: "quiet" }, `token ${number + 1} of ${count}`)),
      h("p", { class: "card-sentence", id: "token-sentence" }, sentence(token, lacks)),
      candidates(token, names), numbers(token));
    if (!this.matches(":popover-open")) this.showPopover();
    this.#anchor = anchor;
    this.#place();
  }

  #place() {
    if (this.matches(":popover-open")) place(this, this.#anchor.getBoundingClientRect());
  }

  /** Takes back that it should hide. */
  stay() {
    clearTimeout(this.#timer);
  }

  hideSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.hide(), HIDE_MS);
  }

  hide() {
    clearTimeout(this.#timer);
    if (this.matches(":popover-open")) this.hidePopover();
  }
}

function candidates(token, names) {
  if (!token.top) return null;
  return h("div", { class: "streams" }, Object.entries(token.top).map(([stream, list]) =>
    h("section", { class: `stream ${stream === "guided" ? "is-guided" : ""}` },
      h("h4", {}, names[stream] ?? stream.replaceAll("_", " ")),
      h("ol", {}, list.map(({ token: text, logprob }) => {
        const share = Math.exp(logprob);
        return h("li", { class: text === token.name ? "is-chosen" : "", "--share": share },
          h("code", {}, visible(text)), h("span", {}, percent(share)));
      })))));
}

function numbers(token) {
  const rows = Object.keys(token.figures).map((name) => [name, valueOf(token, name)])
    .filter(([, value]) => value !== null)
    .map(([name, value]) => h("div", {}, h("dt", {}, about(name).label), h("dd", {}, shown(name, value))));
  return h("dl", { class: "numbers" }, rows);
}

/** What the candidates say, in one sentence. */
export function sentence(token, lacks) {
  const { primary, guide, guided } = token.top ?? {};
  if (!primary?.length) return token.ends ? "The answer ends here." : "";
  const best = ([{ token: text, logprob }]) => `${quoted(text)} (${percent(Math.exp(logprob))})`;
  if (!guide?.length) return `The model's first choice is ${best(primary)}.`;
  const [one, other] = lacks ? [`With the ${lacks}`, "without it"] : ["In the model", "in the other stream"];
  const both = primary[0].token === guide[0].token
    ? `${one} and ${other}, the first choice is the same: ${best(primary)} and ${best(guide)}.`
    : `${one}, the first choice is ${best(primary)}; ${other}, it is ${best(guide)}.`;
  return guided?.length ? `${both} The method makes it ${best(guided)}.` : both;
}

/** A probability as people read it. */
export function percent(share) {
  if (share > 0.995 && share < 1) return ">99 %";
  if (share > 0 && share < 0.01) return "<1 %";
  return `${Math.round(share * 100)} %`;
}

customElements.define("token-card", TokenCard);
