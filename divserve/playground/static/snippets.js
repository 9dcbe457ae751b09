// A request as code that can be run: curl, Python, JavaScript. The key is read from the environment.

const KEY = "DIVSERVE_API_KEY";

/** By name: the code that sends `body` to the API at `base` ("http://host/v1"). */
export function snippets(base, body, keyed) {
  return {
    curl: curl(base, body, keyed),
    Python: python(base, body, keyed),
    JavaScript: javascript(base, body, keyed),
  };
}

function curl(base, body, keyed) {
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $${KEY}"` : "";
  return `curl -N ${base}/chat/completions \\\n  -H 'Content-Type: application/json'${key} \\\n` +
    `  -d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`;
}

function python(base, { decoding, ...body }, keyed) {
  const more = decoding ? { extra_body: { decoding } } : {};
  const lines = Object.entries({ ...body, ...more }).map(([k, v]) => `    ${k}=${literal(v, 1)},`);
  const key = keyed ? `os.environ["${KEY}"]` : '"none"';
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${base}", api_key=${key})
stream = client.chat.completions.create(
${lines.join("\n")}
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()`;
}

/** A JSON value as Python writes it. */
export function literal(value, depth = 0) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, depth + 1))
    : Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${literal(v, depth + 1)}`);
  if (!items.length) return open + close;
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${pad}${item},`).join("\n")}\n${end}${close}`;
}

function javascript(base, body, keyed) {
  const key = keyed ? `\n    Authorization: \`Bearer \${process.env.${KEY}}\`,` : "";
  return `const response = await fetch(${JSON.stringify(`${base}/chat/completions`)}, {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key}
  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
let rest = "";
for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
  const events = (rest + text).split("\\n\\n");
  rest = events.pop();
  for (const event of events) {
    if (event === "data: [DONE]") break;
    console.log(JSON.parse(event.slice(6)).choices[0]?.delta.content ?? "");
  }
}`;
}
