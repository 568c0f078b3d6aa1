/** Builds the whole widget in one file, for pages that pin its bytes with an `integrity` attribute. */
import { start } from "./app.ts";
import { extendLauncher } from "../extras/launcher/launcher.ts";
import { bootstrap } from "../host/bootstrap.ts";

bootstrap(async () => ({ start, extendLauncher }));
