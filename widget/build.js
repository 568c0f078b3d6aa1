/**
 * Builds what the server serves, reproducibly, and fails above the size limits: widget.js, app-<hash>.js with a file
 * for each language, and single.js with its digest in sri.json; brotli/ holds each script compressed.
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
/** Property names to mangle: used in the app's own code alone, and neither a text's key, an option, nor part of a protocol. */
export const MANGLED = [
  ..."activate addAnswer addQuestion address align alignLeft allowsImage announce appendText base citations client".split(" "),
  ..."closes composer contextLimit detach direction dropSession environment events eventText fetcher field".split(" "),
  ..."finishReason follow followEnd greeting handlers identify imageOrigins inline inner items launcher level mark".split(" "),
  ..."messageId nextEvent node onConversationLost opens pause persistence post postForJson question rate".split(" "),
  ..."reconnecting render replacedReplyId replyId restore resumable resumed retryAfter root saveConversation".split(" "),
  ..."session setContext setEnabled setStreaming settings settle showActions showHint showIntroduction showProblem".split(" "),
  ..."size source startNewChat store submit texts toggle token update updated wrapCode".split(" "),
];
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));

/** Imports stylesheets as minified strings; `bundled` puts all languages into the same file. */
export const plugin = (bundled) => ({
  name: "secateur",
  setup(builder) {
    builder.onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const options = { loader: "css", minify: true, charset: "utf8", target: "es2022" };
      const { code } = await transform(readFileSync(path, "utf8"), options);
      const contents = code.trim().replace(/(?<=[,:]) (?=[.a-z\d#])| (?=!)/g, "").replace(/="(\w+)"/g, "=$1");
      return { contents, loader: "text" };
    });
    if (!bundled) return;
    builder.onResolve({ filter: /\/languages\.ts$/ }, () => ({ path: join(here, "src/texts/languages-bundled.ts") }));
  },
});

/** Bundles src/`name`; terser makes the output of esbuild another 3 % smaller. */
async function bundle(name, format, define = {}, bundled = false) {
  const common = { bundle: true, minify: true, target: "es2022", charset: "utf8", write: false, plugins: [plugin(bundled)] };
  const mangleProps = new RegExp(`^(${MANGLED.join("|")})$`);
  const constants = { VERSION: version, ROOT: ".", ...define };
  const defined = Object.fromEntries(Object.entries(constants).map(([key, value]) => [key, JSON.stringify(value)]));
  const built = await build({ ...common, mangleProps, entryPoints: [join(here, "src", name)], absWorkingDir: here, format, define: defined });
  const { code } = await minify(built.outputFiles[0].text, { module: true, ecma: 2020, compress: { passes: 3, unsafe: true, pure_getters: true } });
  return Buffer.from(code);
}

function hashedName(name, bytes) {
  return `${name}-${createHash("sha256").update(bytes).digest("hex").slice(0, 8)}.js`;
}

/** Prints the size of a file and throws above its limit. */
function checkSize(name, bytes, limit) {
  const size = gzipSync(bytes, { level: 9 }).length;
  console.log(`${name}: ${bytes.length} bytes, ${size} with gzip, at most ${limit}`);
  if (size > limit) throw new Error(`${name} has ${size} bytes with gzip; the limit is ${limit}`);
}

/** Builds every file; returns their bytes by name. */
async function buildFiles() {
  const files = new Map();
  const languages = {};
  for (const file of readdirSync(join(here, "src/texts")).filter((name) => /^[a-z]{2}\.ts$/.test(name))) {
    const bytes = await bundle(`texts/${file}`, "esm");
    const code = file.slice(0, 2);
    languages[code] = hashedName(`app-${code}`, bytes);
    checkSize(languages[code], bytes, LIMITS.language);
    files.set(languages[code], bytes);
  }
  const app = await bundle("entries/app.ts", "esm", { LANGUAGES: languages });
  const name = hashedName("app", app);
  const loader = await bundle("entries/loader.ts", "iife", { APP_FILE: name });
  const single = await bundle("entries/single.ts", "iife", { ROOT: "../../" }, true);
  checkSize("widget.js", loader, LIMITS.loader);
  checkSize(name, app, LIMITS.app);
  checkSize(`v/${version}/widget.js`, single, LIMITS.single);
  const digest = `sha384-${createHash("sha384").update(single).digest("base64")}`;
  const sri = `${JSON.stringify({ version, file: `v/${version}/widget.js`, integrity: digest }, null, 2)}\n`;
  return files.set(name, app).set("widget.js", loader).set("single.js", single).set("sri.json", Buffer.from(sri));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const output = resolve(process.argv[2] ?? join(here, "../server/web/assets/widget"));
  const brotli = join(output, "brotli");
  const files = await buildFiles();
  mkdirSync(brotli, { recursive: true });
  for (const folder of [output, brotli]) {
    for (const name of readdirSync(folder)) if (/^app-.*\.js(\.br)?$/.test(name)) rmSync(join(folder, name));
  }
  for (const [name, bytes] of files) {
    writeFileSync(join(output, name), bytes);
    if (name.endsWith(".js")) writeFileSync(join(brotli, `${name}.br`), brotliCompressSync(bytes));
  }
}
