// A provider for Vercel's AI SDK that keeps the account: providerMetadata.divserve.decoding
//
//   const divserve = createDivserve({ baseURL: "http://127.0.0.1:8000/v1" });
//   const { providerMetadata } = await generateText({
//     model: divserve("MODEL"), prompt, providerOptions: { divserve: { decoding } } });

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

/** Adds the account in a chunk to what is known: entries of the trace are appended. */
export function merge(known, account) {
  const trace = [...(known.trace ?? []), ...(account.trace ?? [])];
  return { ...known, ...account, ...(trace.length > 0 && { trace }) };
}

const told = (account) => (account === undefined ? undefined : { divserve: { decoding: account } });

/** Reads the account of the first choice; the SDK asks for one. */
export const metadataExtractor = {
  extractMetadata: async ({ parsedBody }) => told(parsedBody.choices?.[0]?.decoding),

  createStreamExtractor: () => {
    let account;
    return {
      processChunk: (chunk) => {
        const found = chunk?.choices?.[0]?.decoding;
        if (found) account = merge(account ?? {}, found);
      },
      buildMetadata: () => told(account),
    };
  },
};

export const createDivserve = (settings) =>
  createOpenAICompatible({ name: "divserve", includeUsage: true, metadataExtractor, ...settings });
