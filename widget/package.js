/** Builds dist/, the content of the npm package: the element, the app as a chunk of its own, the wrappers for React and Vue, and the types. */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { plugin } from "./build.js";

const here = dirname(fileURLToPath(import.meta.url));
const output = join(here, "dist");
const { version } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));

rmSync(output, { recursive: true, force: true });
mkdirSync(output);
await build({
  entryPoints: { index: join(here, "src/entries/npm.ts"), react: join(here, "src/entries/wrappers/react.ts"), vue: join(here, "src/entries/wrappers/vue.ts") },
  external: ["react", "vue"],
  outdir: output,
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  plugins: [plugin(true)],
  define: { VERSION: JSON.stringify(version) },
});
const emitted = join(output, "declarations");
const options = ["--noEmit", "false", "--emitDeclarationOnly", "--declaration", "--rootDir", join(here, "src"), "--outDir", emitted];
const { status } = spawnSync(join(here, "node_modules/.bin/tsc"), ["-p", here, ...options], { stdio: "inherit" });
if (status) process.exit(status);
const declarations = { "entries/npm": "index", "host/contract": "host", "entries/wrappers/shared": "shared", "entries/wrappers/react": "react", "entries/wrappers/vue": "vue" };
for (const [source, name] of Object.entries(declarations)) {
  const text = readFileSync(join(emitted, `${source}.d.ts`), "utf8");
  const imports = text.replace(/(?:\.\.\/)+host\/contract\.ts/g, "./host.js").replaceAll("../npm.ts", "./index.js").replaceAll("./shared.ts", "./shared.js");
  writeFileSync(join(output, `${name}.d.ts`), imports);
}
rmSync(emitted, { recursive: true });
