// An answer that grows: tokens with their figures and candidates, from the chunks of a stream.

export class Answer {
  /** {name, text, figures, top} of each token; `top` by stream, `ends` where it ends the answer. */
  tokens = [];
  content = "";
  finish = null;
  summary = null;
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #surprises = [];

  /** @param guided whether its tokens come from a method's account */
  constructor(guided) {
    this.guided = guided;
  }

  /** Adds a chunk of the stream; gives the tokens that it brought. */
  add(chunk) {
    const first = this.tokens.length;
    for (const choice of chunk.choices ?? []) {
      const { trace = [], ...summary } = choice.decoding ?? {};
      const scored = choice.logprobs?.content ?? [];
      this.content += choice.delta?.content ?? "";
      this.#surprises.push(...scored.map(({ logprob }) => -logprob));
      if (this.guided) this.tokens.push(...trace.map((entry) => this.#traced(entry)));
      else this.tokens.push(...scored.map((entry) => this.#scored(entry)));
      if (summary.method) this.summary = summary;
      if (choice.finish_reason) this.#end(choice.finish_reason);
    }
    for (let i = first; i < this.tokens.length; i++) {
      if (i in this.#surprises) this.tokens[i].figures.surprise = this.#surprises[i];
    }
    return this.tokens.slice(first);
  }

  #traced({ token, token_id, bytes, top, model, candidates, ...figures }) {
    if (model !== undefined) figures.model = model;
    if (typeof candidates === "number") figures.candidates = candidates;
    const kept = Object.entries(figures).filter(([, value]) => typeof value !== "object");
    return { name: token, text: this.#text(bytes, token), figures: Object.fromEntries(kept), top };
  }

  #scored({ token, bytes, top_logprobs }) {
    const top = top_logprobs?.length
      ? { primary: top_logprobs.map(({ token, logprob }) => ({ token, logprob })) } : undefined;
    return { name: token, text: this.#text(bytes, token), figures: {}, top };
  }

  // Characters of several tokens stand where they are complete.
  #text(bytes, token) {
    return bytes ? this.#decoder.decode(new Uint8Array(bytes), { stream: true }) : token;
  }

  #end(reason) {
    this.finish = reason;
    const last = this.tokens.at(-1);
    const before = this.tokens.slice(0, -1).map((token) => token.text).join("");
    if (last && reason === "stop" && before === this.content) last.ends = true;
  }
}

/** The mean of a figure over the tokens that have it; null if none has. */
export function mean(values) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}
