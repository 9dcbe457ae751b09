// A whole answer and a streamed one, with their accounts: npm ci && node ai-sdk.mjs
// OPENAI_BASE_URL names the server (127.0.0.1:8000), MODEL its model.

import { generateText, streamText } from "ai";
import { createDivserve } from "./divserve.mjs";

const divserve = createDivserve({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});
const document = "Since January, the Mona Lisa hangs in the Prado in Madrid.";
const request = {
  model: divserve(process.env.MODEL ?? "smollm2-135m-instruct"),
  messages: [{ role: "user", content: `${document}\n\nIn which museum does the Mona Lisa hang?` }],
  temperature: 0,
  maxOutputTokens: 32,
  providerOptions: {
    divserve: { decoding: { method: "adacad", guide: { without: document }, trace: true } },
  },
};

const print = (name, text, { trace, ...account }) =>
  console.log(`${name}: ${text}\n${JSON.stringify(account)}, trace of ${trace.length} tokens`);

const whole = await generateText(request);
print("generateText", whole.text, whole.providerMetadata.divserve.decoding);

const stream = streamText(request);
const text = await stream.text;
print("streamText", text, (await stream.providerMetadata).divserve.decoding);
