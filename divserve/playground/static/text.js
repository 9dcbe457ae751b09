// Token texts, so that spaces and line breaks are seen.

/** A token as a label: its outer spaces and its line breaks as signs. */
export function visible(text) {
  const marked = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g,
    (spaces) => "·".repeat(spaces.length));
  return marked === "" ? "∅" : marked;
}

/** A token as a word in a sentence. */
export function quoted(text) {
  return `“${text.trim() || visible(text)}”`;
}
