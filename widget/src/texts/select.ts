/** Selects the visitor's language. */
import type { Texts } from "./languages/en.ts";
import { codes, load } from "./languages.ts";

/** Returns the code of a language tag such as `de-AT`; English if the language is unknown. */
export function codeOf(language: string, known: string[]): string {
  const code = language.toLowerCase().split("-")[0]!;
  return known.includes(code) ? code : "en";
}

/** Loads the texts for a language tag; `own` is JSON with the page's own ones. */
export async function textsFor(language: string, own: string): Promise<Texts> {
  const file = await load(codeOf(language, codes));
  return file.override(file.default, own);
}
