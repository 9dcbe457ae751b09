// From a value to a level between 0 and 1; the style sheet turns levels into colours, so that they
// fit the light and the dark page. Ranges are fixed: a colour means the same in every column.

import { about } from "./figures.js";

/** The level of a value: 0 at the start of the figure's range, 1 at its end and beyond. */
export function level(name, value) {
  if (value === null || !Number.isFinite(value)) return null;
  const { range: [low, high], log } = about(name);
  const f = log ? Math.log : (x) => x;
  const share = (f(Math.max(value, low)) - f(low)) / (f(high) - f(low));
  return Math.min(1, Math.max(0, share));
}

/** The numbers of a legend: {level, text}, in the order of their levels. */
export function ticks(name) {
  const { range: [low, high], log, words } = about(name);
  if (words) return words.map((text, i) => ({ level: i, text }));
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  return [low, middle, high].map((value, i) => ({
    level: i / 2,
    text: `${i === 2 ? "≥ " : ""}${Number(value.toPrecision(2))}`,
  }));
}
