// The public API, by addresses relative to the page, so that a proxy's prefix stays.

import { eventsOf } from "./sse.js";

export const BASE = new URL("../v1", location.href);

/** An error as a sentence; `place` is the field that it is about, where that is known. */
export class ApiError extends Error {
  constructor(message, place) {
    super(message);
    this.place = place;
  }
}

/** Calls the API with a key that is kept in this object and nowhere else. */
export class Api {
  key = "";

  /** The entries of a list: /v1/models, /v1/decoding/methods. */
  async list(path) {
    return (await (await this.#ask(path, {})).json()).data;
  }

  /** The chunks of a streamed chat completion, as they come. */
  async *chat(body, signal) {
    const response = await this.#ask("/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw told(chunk.error);
      yield chunk;
    }
    throw new ApiError("The connection was closed before the answer was complete. Run it again.");
  }

  async #ask(path, options) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    let response;
    try {
      response = await fetch(`${BASE}${path}`, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    const found = body?.error ?? { message: `The server answered with status ${response.status}.` };
    throw told(found, response.status);
  }
}

function told({ message, param }, status) {
  const text = /[.!?)]$/.test(message) ? message : `${message}.`;
  return new ApiError(text, status === 401 ? "key" : param ?? undefined);
}
