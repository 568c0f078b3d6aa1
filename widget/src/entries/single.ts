/** The whole widget in one file, for pages that pin its bytes by an `integrity` attribute. */
import { start } from "./app.ts";
import { begin } from "../host/bootstrap.ts";

begin(async () => ({ start }));
