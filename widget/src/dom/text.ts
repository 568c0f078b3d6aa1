/** Neutralises characters that make a text look different from what it says. */

/** Removes the embeddings, overrides and isolates of bidirectional text, which may reorder what is around them. */
export function withoutBidiControls(text: string): string {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "");
}
