/**
 * Builds what the server serves, reproducibly, and fails above the size limits: widget.js, app-<hash>.js with a file
 * for each language, a chunk-<name>-<hash>.js for each part of rare code, and single.js with its digest in sri.json; brotli/ holds each script compressed.
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
const LIMITS = { loader: 2 * 1024, app: 15 * 1024, language: 2048, chunk: 4 * 1024, single: 36 * 1024 };
/** The rare code that the app loads on first use, each from a file of its own. */
const CHUNKS = ["launcher/launcher", "answer/rich", "answer/turn", "panel/phone", "panel/field", "panel/undo", "panel/busy"];
/** Property names to mangle: used in the app's own code alone, and neither a text's key, an option, nor part of a protocol. */
export const MANGLED = [
  ..."activate keepDraft addAnswer addQuestion address align alignLeft allowsImage announce appendText avatar base".split(" "),
  ..."citations client closes composer contextLimit detach direction dropSession environment eventText".split(" "),
  ..."events extend extension fetcher field finishReason follow followEnd followUps greeting handlers".split(" "),
  ..."identify imageOrigins inline inner items launcher level levels mark messageId needsExtension newChat".split(" "),
  ..."nextEvent node onConversationLost onFirstInput opens panel parseTable pause persistence post".split(" "),
  ..."postForJson question rate reconnecting render replacedReplyId replyId restore resumable resumed".split(" "),
  ..."retryAfter root saveConversation session setContext setEnabled setStreaming setText settings settle".split(" "),
  ..."showActions showHint showIntroduction showProblem size source startNewChat startsTable store submit".split(" "),
  ..."suggest teaserAfter teaserAt teaserPhone textLimit texts toggle token topLayer update updated".split(" "),
  ..."beginning isOpen visibility wrapCode".split(" "),
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
    builder.onResolve({ filter: /\/files\.ts$/ }, () => ({ path: join(here, "src/entries/chunks-bundled.ts") }));
  },
});

/** Bundles src/`name`; terser makes the output of esbuild another 3 % smaller. */
async function bundle(name, format, define = {}, bundled = false) {
  const common = { bundle: true, minify: true, target: "es2022", charset: "utf8", write: false, plugins: [plugin(bundled)] };
  const mangleProps = new RegExp(`^(${MANGLED.join("|")})$`);
  const constants = { VERSION: version, ROOT: ".", ...define };
  const defined = Object.fromEntries(Object.entries(constants).map(([key, value]) => [key, JSON.stringify(value)]));
  const built = await build({ ...common, mangleProps, mangleCache, entryPoints: [join(here, "src", name)], absWorkingDir: here, format, define: defined });
  Object.assign(mangleCache, built.mangleCache);
  const { code } = await minify(built.outputFiles[0].text, { module: true, ecma: 2020, compress: { passes: 3, unsafe: true, pure_getters: true, unsafe_arrows: true, unsafe_methods: true } });
  return Buffer.from(code);
}

/** The short name of each mangled property: app and chunks pass objects to each other, so they share the names. */
const mangleCache = {};

/** Prints the size of a file and throws above its limit. */
function checkSize(name, bytes, limit) {
  const size = gzipSync(bytes, { level: 9 }).length;
  console.log(`${name}: ${bytes.length} bytes, ${size} with gzip, at most ${limit}`);
  if (size > limit) throw new Error(`${name} has ${size} bytes with gzip; the limit is ${limit}`);
}

/** Builds every file; returns their bytes by name. All names have one hash, of the content of all, which keeps loader and app small. */
async function buildFiles() {
  const codes = readdirSync(join(here, "src/texts/languages")).filter((name) => name.length === 5).map((name) => name.slice(0, 2));
  const parts = new Map();
  for (const code of codes) parts.set(`app-${code}`, await bundle(`texts/languages/${code}.ts`, "esm"));
  for (const chunk of CHUNKS) parts.set(`chunk-${chunk.split("/")[1]}`, await bundle(`extras/${chunk}.ts`, "esm"));
  const app = (hash) => bundle("entries/app.ts", "esm", { LANGUAGES: codes.join(" "), BUILD: hash });
  const hash = createHash("sha256");
  for (const bytes of [...parts.values(), await app("")]) hash.update(bytes);
  const build = hash.digest("hex").slice(0, 8);
  parts.set("app", await app(build));
  const files = new Map();
  for (const [name, bytes] of parts) {
    const limit = name === "app" ? LIMITS.app : name.startsWith("app-") ? LIMITS.language : LIMITS.chunk;
    checkSize(`${name}-${build}.js`, bytes, limit);
    files.set(`${name}-${build}.js`, bytes);
  }
  const loader = await bundle("entries/loader.ts", "iife", { BUILD: build });
  const single = await bundle("entries/single.ts", "iife", { ROOT: "../../" }, true);
  checkSize("widget.js", loader, LIMITS.loader);
  checkSize(`v/${version}/widget.js`, single, LIMITS.single);
  const digest = `sha384-${createHash("sha384").update(single).digest("base64")}`;
  const sri = `${JSON.stringify({ version, file: `v/${version}/widget.js`, integrity: digest }, null, 2)}\n`;
  return files.set("widget.js", loader).set("single.js", single).set("sri.json", Buffer.from(sri));
}

/** The folder of a file: texts and rare code lie apart from what everybody loads. */
function folderOf(name) {
  return name.startsWith("chunk-") ? "chunks" : /^app-[a-z]{2}-/.test(name) ? "languages" : "";
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const output = resolve(process.argv[2] ?? join(here, "../server/web/assets/widget"));
  const files = await buildFiles();
  for (const folder of ["", "languages", "chunks"].map((name) => join(output, name))) {
    mkdirSync(join(folder, "brotli"), { recursive: true });
    for (const place of [folder, join(folder, "brotli")]) {
      for (const name of readdirSync(place)) if (/^(app|chunk)-.*\.js(\.br)?$/.test(name)) rmSync(join(place, name));
    }
  }
  for (const [name, bytes] of files) {
    const folder = join(output, folderOf(name));
    writeFileSync(join(folder, name), bytes);
    if (name.endsWith(".js")) writeFileSync(join(folder, "brotli", `${name}.br`), brotliCompressSync(bytes));
  }
}
