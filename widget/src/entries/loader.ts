/**
 * Builds widget.js: shows the launcher and loads the app on first use.
 * Until then it sends no request, stores nothing, and adds only its element and one global.
 */
import { bootstrap } from "../host/bootstrap.ts";

bootstrap((base, name, failures) => import(`${base}assets/${name}-${BUILD}.js?${failures}`));
