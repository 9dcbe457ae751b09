// What the words on the page mean: label and explanation of their "?" buttons.

export const TIPS = {
  document: ["About the document",
    "A text that belongs to the question and follows it in the request. Methods with a guide " +
    "compare two streams: the model that sees it, and the model that does not. Without a document, " +
    "they compare with and without the system message."],
  system: ["About the system message",
    "An instruction that comes before the question. Instructive decoding compares with a " +
    "distorted one."],
  tokens: ["About tokens",
    "The model writes in tokens: words or pieces of words. The answer ends after this many."],
  temperature: ["About temperature",
    "0 takes the likeliest token each time; larger values draw more freely."],
  seed: ["About the seed", "Fixes the draws, so that a shared link gives the same answer. It is " +
    "used where the temperature is above 0."],
  top: ["About candidates", "How many of the likeliest tokens of each stream are shown for a token."],
};
