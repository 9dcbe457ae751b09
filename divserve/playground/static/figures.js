// What the numbers of a token mean, for people: label, unit, range of the colours, explanation.

const figure = (label, unit, range, about, more = {}) => ({ label, unit, range, about, ...more });

export const FIGURES = {
  kl: figure("Divergence (KL)", "nats", [0, 5],
    "How much the two streams disagree about this token: 0 if they say the same. " +
    "KL is the Kullback–Leibler divergence, in nats (natural logarithm)."),
  jsd: figure("Divergence (JSD)", "nats", [0, 0.7],
    "How much the two streams disagree, on a scale that ends at 0.69 nats (Jensen–Shannon " +
    "divergence)."),
  entropy: figure("Entropy", "nats", [0, 6],
    "How unsure the model is about this token before the method acts: 0 if only one token is " +
    "possible."),
  alpha: figure("Contrast strength (alpha)", "", [0, 1],
    "How strongly the method pushes this token away from what the other stream says: 0 is plain."),
  scale: figure("Guidance scale", "", [0, 5],
    "How strongly the prompt is followed: 1 is plain."),
  temperature: figure("Temperature", "", [0, 1.5],
    "How freely this token is drawn: 0 takes the likeliest one."),
  surprise: figure("Surprise", "nats", [0, 6],
    "How unlikely the chosen token was: minus the logarithm of its probability, 0 if it was " +
    "certain."),
  entropy_bits: figure("Entropy", "bits", [0, 8],
    "How unsure the model that decoded this token was; the switch to the large model depends on it."),
  kl_min: figure("Smallest divergence to an earlier step", "nats", [0, 5],
    "How far this step is from the most similar earlier one; small values are a sign of a loop."),
  candidates: figure("Candidates", "tokens", [1, 1000],
    "How many tokens the method leaves to choose from.", { log: true }),
  sum_p2: figure("Certainty (Σp²)", "", [0, 1],
    "How certain the model is: 1 if only one token is possible."),
  overlap: figure("Overlap", "", [0, 1],
    "How much probability the large and the small model give to the same tokens."),
  agree: figure("Same first choice", "", [0, 1],
    "Whether the large and the small model have the same likeliest token.", { words: ["no", "yes"] }),
  alarm: figure("Alarm", "", [0, 1],
    "Whether this step was so similar to an earlier one that the method looked for another token.",
    { words: ["quiet", "alarm"] }),
  model: figure("Model", "", [0, 1],
    "Which model decoded this token.", { words: ["small", "large"] }),
};

/** What is known of a figure; a method of the future may report one that is not known here. */
export function about(name) {
  return FIGURES[name] ?? figure(name.replaceAll("_", " "), "", [0, 1],
    "A number that the method reports for every token.");
}

/** A figure's value in a token; null where the token has none. */
export function valueOf(token, name) {
  const value = token.figures[name];
  if (value === null || value === undefined) return null;
  const { words } = about(name);
  if (words && typeof value === "string") return words.indexOf(value) < 0 ? null : words.indexOf(value);
  return Number(value);
}

/** A value as people read it: "1.25 nats", "large". */
export function shown(name, value) {
  const { words, unit, log } = about(name);
  if (words && words[value] !== undefined) return words[value];
  const digits = log || Number.isInteger(value) && Math.abs(value) >= 10 ? 0 : 2;
  return `${value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })}` +
    (unit ? ` ${unit}` : "");
}

/** The figures that answers of these methods can be coloured by. */
export function choices(methods) {
  const found = new Set(methods.flatMap((method) => method.reports));
  const switches = methods.some((method) => method.role === "switch");
  const order = Object.keys(FIGURES).filter((name) =>
    found.has(name) || name === "surprise" || (name === "model" && switches));
  return [...order, ...[...found].filter((name) => !(name in FIGURES))];
}
