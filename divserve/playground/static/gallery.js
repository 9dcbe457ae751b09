// The prepared examples.

import { h } from "./dom.js";
import { column, initial, PLAIN } from "./state.js";

/** The examples: {title, about, method, prompt, document, system, parameters}; `shows` is for the tests. */
export async function examples() {
  return (await fetch(new URL("examples.json", import.meta.url))).json();
}

/** The state of an example: a plain column and one with its method. */
export function stateOf({ method, parameters = {}, prompt, document = "", system = "", colour = "kl" }) {
  return {
    ...initial(), prompt, document, system, colour,
    columns: [column(PLAIN), column(method, { ...parameters })],
  };
}

/** Buttons for the examples; `choose` gets the state of the one that is pressed. */
export function cards(list, choose) {
  return list.map((example) => h("button", {
    type: "button", class: "example", onclick: () => choose(stateOf(example)),
  }, h("strong", {}, example.title), h("span", { class: "quiet" }, example.about),
  h("span", { class: "chip small" }, example.method)));
}
