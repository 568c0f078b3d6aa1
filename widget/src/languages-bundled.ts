/** The languages, in the same file: for the build that is one file, and for bundlers. */
import arabic from "./texts/ar.ts";
import german from "./texts/de.ts";
import english, { type Texts } from "./texts/en.ts";
import spanish from "./texts/es.ts";
import french from "./texts/fr.ts";

const given = (texts: Texts) => (): Promise<Texts> => Promise.resolve(texts);

export const tables = new Map([
  ["ar", given(arabic)],
  ["de", given(german)],
  ["en", given(english)],
  ["es", given(spanish)],
  ["fr", given(french)],
]);
