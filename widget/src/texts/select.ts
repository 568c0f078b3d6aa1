/** Selects the visitor's language. */
import type { Texts } from "./en.ts";
import { codes, load } from "./languages.ts";

/** Returns the code of a language tag such as `de-AT`; English if the language is unknown. */
export function codeOf(language: string, known: string[]): string {
  const code = language.toLowerCase().split("-")[0]!;
  return known.includes(code) ? code : "en";
}

/** Loads the texts for a language tag. */
export const textsFor = (language: string): Promise<Texts> => load(codeOf(language, codes));
