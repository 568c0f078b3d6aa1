/**
 * Builds server/assets/widget.js and server/assets/app-<hash>.js, the same bytes every time, and fails above the limits.
 * `node build.js FOLDER` writes elsewhere.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build, transform } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const output = resolve(process.argv[2] ?? join(here, "../server/assets"));
const LIMITS = { loader: 2 * 1024, app: 15 * 1024 };

/** Stylesheets become minified strings. */
export const styles = {
  name: "styles",
  setup(builder) {
    builder.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await transform(readFileSync(path, "utf8"), { loader: "css", minify: true });
      return { contents: code.trim(), loader: "text" };
    });
  },
};

async function bundle(name, format, define = {}) {
  const options = { bundle: true, minify: true, target: "es2022", charset: "utf8", write: false, plugins: [styles] };
  const built = await build({ ...options, entryPoints: [join(here, "src", name)], absWorkingDir: here, format, define });
  return built.outputFiles[0].contents;
}

function check(name, bytes, limit) {
  const size = gzipSync(bytes, { level: 9 }).length;
  console.log(`${name}: ${bytes.length} bytes, ${size} with gzip, at most ${limit}`);
  if (size > limit) throw new Error(`${name} has ${size} bytes with gzip; the limit is ${limit}`);
}

const app = await bundle("app.ts", "esm");
const appFile = `app-${createHash("sha256").update(app).digest("hex").slice(0, 12)}.js`;
const loader = await bundle("loader.ts", "iife", { APP_FILE: JSON.stringify(appFile) });
check(appFile, app, LIMITS.app);
check("widget.js", loader, LIMITS.loader);

mkdirSync(output, { recursive: true });
for (const name of readdirSync(output)) if (/^app-.*\.js$/.test(name)) rmSync(join(output, name));
writeFileSync(join(output, appFile), app);
writeFileSync(join(output, "widget.js"), loader);
