/**
 * Builds widget.js: shows the launcher and loads the app on first use.
 * Until then it sends no request, stores nothing, and adds only its element and one global.
 */
import { bootstrap } from "../host/bootstrap.ts";

bootstrap((base, failures) => import(`${base}assets/${APP_FILE}?${failures}`));
