// npm's `openai`: a whole answer and a streamed one, with their accounts: npm ci && node openai.mjs
// OPENAI_BASE_URL names the server (127.0.0.1:8000), MODEL its model.

import OpenAI from "openai";
import { merge } from "./divserve.mjs";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});
const document = "Since January, the Mona Lisa hangs in the Prado in Madrid.";
const request = (trace) => ({
  model: process.env.MODEL ?? "smollm2-135m-instruct",
  messages: [{ role: "user", content: `${document}\n\nIn which museum does the Mona Lisa hang?` }],
  temperature: 0,
  max_tokens: 32,
  // The client sends fields that it does not know as they are.
  decoding: { method: "adacad", guide: { without: document }, trace },
});

const print = (name, text, { trace, ...account }) =>
  console.log(`${name}: ${text}\n${JSON.stringify(account)}, trace of ${trace.length} tokens`);

const whole = await client.chat.completions.create(request(true));
print("create", whole.choices[0].message.content, whole.choices[0].decoding);

// The stream helper's last answer has the last account that came. Each chunk's is in its event ...
const helper = client.chat.completions.stream(request(true));
let account = {};
helper.on("chunk", ({ choices }) => (account = merge(account, choices[0]?.decoding ?? {})));
const text = await helper.finalContent();
print("stream", text, account);

// ... and with "final" all of it comes at once.
const final = await client.chat.completions.stream(request("final")).finalChatCompletion();
print("final", final.choices[0].message.content, final.choices[0].decoding);
