// The legend of the colours, and the choice of the figure that they show.

import { h } from "./dom.js";
import { about, choices } from "./figures.js";
import { ticks } from "./scale.js";
import { tip } from "./tip.js";

/** Draws the legend of a figure into `element`. */
export function legend(element, name) {
  const { label, unit, words } = about(name);
  const marks = ticks(name);
  element.setAttribute("aria-label",
    `Legend: ${label}${unit ? ` in ${unit}` : ""}, ${marks.map(({ text }) => text).join(", ")}`);
  const steps = words ? marks.map(({ level }) => level) : [0, 0.2, 0.4, 0.6, 0.8, 1];
  element.replaceChildren(
    h("div", { class: "ramp" }, steps.map((level) => h("span", { "--level": level }))),
    h("div", { class: "ramp-ticks" }, marks.map(({ text }) => h("span", {}, text))),
    h("span", { class: "quiet small" }, unit));
}

/** Fills the choice of figures; keeps `wanted` if there is such a figure. Gives the one chosen. */
export function offer(select, methods, wanted) {
  const names = choices(methods);
  select.replaceChildren(...names.map((name) => h("option", { value: name }, about(name).label)));
  select.value = names.includes(wanted) ? wanted : names[0];
  return select.value;
}

/** The "?" of a figure. */
export function figureTip(name) {
  return tip(`About ${about(name).label}`, about(name).about);
}
