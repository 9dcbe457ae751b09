// "?" buttons that explain a word: by pointer, keyboard and touch.

import { h } from "./dom.js";
import { place } from "./floating.js";

let count = 0;

/** A button that shows `text`. */
export function tip(label, text) {
  const id = `tip-${count++}`;
  const bubble = h("span", { id, class: "tip", popover: "auto", role: "note" }, text);
  const button = h("button", { type: "button", class: "tip-button", "aria-label": label,
    popovertarget: id }, "?");
  bubble.addEventListener("toggle", () => place(bubble, button.getBoundingClientRect()));
  return h("span", { class: "tip-holder" }, button, bubble);
}
