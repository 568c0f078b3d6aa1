/** The whole widget in one file, for pages that pin its bytes by an `integrity` attribute. */
import { start } from "./app.ts";
import { begin } from "./begin.ts";

begin(async () => ({ start }));
