/**
 * Builds what the server serves, the same bytes every time, and fails above the limits:
 * widget.js, app-<hash>.js with a file for each language, and the whole in one file with its digest, under v/<version>/;
 * each beside its .br, since Python has no Brotli: a tenth less than gzip.
 * `node build.js FOLDER` writes elsewhere.
 */
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { build, transform } from "esbuild";
import { minify } from "terser";

const here = dirname(fileURLToPath(import.meta.url));
const LIMITS = { loader: 2 * 1024, app: 15 * 1024, language: 1280, single: 20 * 1024 };
/** Members that only the app's own code names, made short: none is a text, an option, or sent or told. */
export const OWN = [
  ..."address align announce around ask attend base blocks cells citations client composer direction enable eventText".split(" "),
  ..."field follow following forget greeting grew grow hint identify images inline inner introduce items json".split(" "),
  ..."launcher leave left level lost mark most next node opens closes persist post put question rate".split(" "),
  ..."restore resumed returning root seconds session settings settle show size source store submit texts".split(" "),
  ..."token trouble".split(" "),
];
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));

/** Stylesheets become minified strings; with `bundled`, all languages come into the same file. */
export const plugin = (bundled) => ({
  name: "secateur",
  setup(builder) {
    builder.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const options = { loader: "css", minify: true, charset: "utf8", target: "es2022" };
      const { code } = await transform(readFileSync(path, "utf8"), options);
      const short = code.trim().replace(/(?<=[,:]) (?=[a-z\d#])| (?=!)/g, "").replace(/="(\w+)"/g, "=$1");
      return { contents: short, loader: "text" };
    });
    if (!bundled) return;
    builder.onResolve({ filter: /\/languages\.ts$/ }, () => ({ path: join(here, "src/texts/languages-bundled.ts") }));
  },
});

/** One bundle of src/`name`, minified by both: what esbuild leaves, terser makes 3 % smaller. */
async function bundle(name, format, define = {}, bundled = false) {
  const options = { bundle: true, minify: true, target: "es2022", charset: "utf8", write: false, plugins: [plugin(bundled)] };
  const mangleProps = new RegExp(`^(${OWN.join("|")})$`);
  const texts = { VERSION: version, ROOT: ".", ...define };
  const defined = Object.fromEntries(Object.entries(texts).map(([key, value]) => [key, JSON.stringify(value)]));
  const built = await build({ ...options, mangleProps, entryPoints: [join(here, "src", name)], absWorkingDir: here, format, define: defined });
  const { code } = await minify(built.outputFiles[0].text, { module: true, ecma: 2020, compress: { passes: 3, unsafe: true, pure_getters: true } });
  return Buffer.from(code);
}

function hashed(name, bytes) {
  return `${name}-${createHash("sha256").update(bytes).digest("hex").slice(0, 12)}.js`;
}

function check(name, bytes, limit) {
  const size = gzipSync(bytes, { level: 9 }).length;
  console.log(`${name}: ${bytes.length} bytes, ${size} with gzip, at most ${limit}`);
  if (size > limit) throw new Error(`${name} has ${size} bytes with gzip; the limit is ${limit}`);
}

/** Every file by its path. */
async function files() {
  const made = new Map();
  const languages = {};
  for (const file of readdirSync(join(here, "src/texts")).filter((name) => /^[a-z]{2}\.ts$/.test(name))) {
    const bytes = await bundle(`texts/${file}`, "esm");
    const code = file.slice(0, 2);
    languages[code] = hashed(`app-${code}`, bytes);
    check(languages[code], bytes, LIMITS.language);
    made.set(languages[code], bytes);
  }
  const app = await bundle("entries/app.ts", "esm", { LANGUAGES: languages });
  const name = hashed("app", app);
  const loader = await bundle("entries/loader.ts", "iife", { APP_FILE: name });
  const single = await bundle("entries/single.ts", "iife", { ROOT: "../../" }, true);
  check("widget.js", loader, LIMITS.loader);
  check(name, app, LIMITS.app);
  check(`v/${version}/widget.js`, single, LIMITS.single);
  const digest = `sha384-${createHash("sha384").update(single).digest("base64")}`;
  const sri = `${JSON.stringify({ version, file: `v/${version}/widget.js`, integrity: digest }, null, 2)}\n`;
  return made.set(name, app).set("widget.js", loader).set("single.js", single).set("sri.json", Buffer.from(sri));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const output = resolve(process.argv[2] ?? join(here, "../server/assets"));
  const made = await files();
  mkdirSync(output, { recursive: true });
  for (const name of readdirSync(output)) if (/^app-.*\.js(\.br)?$/.test(name)) rmSync(join(output, name));
  for (const [name, bytes] of made) {
    writeFileSync(join(output, name), bytes);
    if (name.endsWith(".js")) writeFileSync(join(output, `${name}.br`), brotliCompressSync(bytes));
  }
}
