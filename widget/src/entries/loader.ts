/**
 * widget.js: puts a launcher where its script line, `<skill-chat>` or `SkillChat("init", ...)` says, and loads the app when
 * the visitor wants it. Until then it asks for nothing, stores nothing and adds nothing but its element and one global.
 */
import { begin } from "../host/bootstrap.ts";

begin((base, failures) => import(`${base}assets/${APP_FILE}?${failures}`));
