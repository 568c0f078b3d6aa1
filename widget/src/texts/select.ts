/** Everything the widget says by itself, one table a language; a key that one lacks does not compile. */
import { tables } from "./languages.ts";
import type { Texts } from "./en.ts";

export type { Texts };

/** The texts for a language tag such as `de-AT`; English where there are none. */
export function textsFor(language: string): Promise<Texts> {
  const table = tables.get(language.toLowerCase().split("-")[0] ?? "") ?? tables.get("en");
  return table!();
}
