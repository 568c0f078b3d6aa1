/** Selects the visitor's language. */
import type { Texts } from "./en.ts";
import { textLoaders } from "./languages.ts";

/** Loads the texts for a language tag such as `de-AT`; English if the language is unknown. */
export function textsFor(language: string): Promise<Texts> {
  const load = textLoaders.get(language.toLowerCase().split("-")[0] ?? "") ?? textLoaders.get("en");
  return load!();
}
