/** Imports each chunk from its own file beside the app. */
import { fileUrl } from "../dom/files.ts";
import type { Extras } from "./contract.ts";

export const importer = <Name extends keyof Extras>(name: Name): Promise<Extras[Name]> => import(fileUrl(`chunk-${name}`)) as Promise<Extras[Name]>;
