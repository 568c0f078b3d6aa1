/** Replaces languages.ts where all languages are in the bundle: in the single file and the npm package. */
import arabic from "./languages/ar.ts";
import german from "./languages/de.ts";
import english, { override, type Language, type Texts } from "./languages/en.ts";
import spanish from "./languages/es.ts";
import french from "./languages/fr.ts";
import italian from "./languages/it.ts";
import japanese from "./languages/ja.ts";
import dutch from "./languages/nl.ts";
import polish from "./languages/pl.ts";
import portuguese from "./languages/pt.ts";

const all: Record<string, Texts> = { ar: arabic, de: german, en: english, es: spanish, fr: french, it: italian, ja: japanese, nl: dutch, pl: polish, pt: portuguese };

export const codes = Object.keys(all);

export const load = async (code: string): Promise<Language> => ({ default: all[code]!, override });
