// The request of a column, as the API takes it.

import { PLAIN } from "./state.js";

/** A mistake that can be told before the server is asked; `place` names the field. */
export class FieldError extends Error {
  constructor(message, place) {
    super(message);
    this.place = place;
  }
}

/**
 * The body of /v1/chat/completions.
 *
 * @param state the page's state
 * @param column one of its columns
 * @param method the column's entry of /v1/decoding/methods; undefined for a plain answer
 * @param model name of the model
 */
export function bodyOf(state, column, method, model) {
  if (!state.prompt.trim()) throw new FieldError("Write a question first.", "prompt");
  const text = state.document ? `${state.prompt}\n\n${state.document}` : state.prompt;
  const system = state.system ? [{ role: "system", content: state.system }] : [];
  const body = {
    model,
    messages: [...system, { role: "user", content: text }],
    temperature: state.temperature,
    ...(state.temperature > 0 ? { seed: state.seed } : {}),
    max_tokens: state.tokens,
    stream: true,
    logprobs: true,
  };
  if (column.method === PLAIN) return { ...body, top_logprobs: state.top };
  return { ...body, decoding: decodingOf(state, column, method) };
}

function decodingOf(state, column, method) {
  if (!method) {
    throw new FieldError(`This server has no method “${column.method}”.`, "decoding.method");
  }
  const missing = Object.entries(method.parameters.properties)
    .find(([name, property]) => !("default" in property) && !(name in column.parameters))?.[0];
  if (missing) {
    throw new FieldError(`${method.title} needs a value for “${missing}”.`, `decoding.${missing}`);
  }
  return {
    method: column.method,
    ...column.parameters,
    ...guideOf(state, method),
    trace: state.top ? { top: state.top } : true,
  };
}

/** What the guide lacks: "document", or "instruction" where there is no document; "": no such guide. */
export function lacking(state, method) {
  const own = !method?.guided || method.natural_guide === "noise";
  if (own) return "";
  return state.document ? "document" : state.system ? "instruction" : "";
}

// A method whose own guide is the distorted instruction keeps that one.
function guideOf(state, method) {
  const lacks = lacking(state, method);
  if (method.guide_required && !lacks) {
    throw new FieldError(
      `${method.title} compares the model with and without a document. Write one, or choose ` +
        "another method.", "document");
  }
  const text = lacks === "document" ? state.document : state.system;
  return lacks ? { guide: { without: text } } : {};
}
