/** Replaces languages.ts where all languages are in the bundle: in the single file and the npm package. */
import arabic from "./ar.ts";
import german from "./de.ts";
import english, { type Texts } from "./en.ts";
import spanish from "./es.ts";
import french from "./fr.ts";

const all: Record<string, Texts> = { ar: arabic, de: german, en: english, es: spanish, fr: french };

export const codes = Object.keys(all);

export const load = async (code: string): Promise<Texts> => all[code]!;
