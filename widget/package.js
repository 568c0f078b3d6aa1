/** Builds dist/, the content of the npm package: the element, the app as a chunk of its own, and the types. */
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
  entryPoints: { index: join(here, "src/entries/npm.ts") },
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
for (const [source, name] of [["entries/npm", "index"], ["host/contract", "host"]]) {
  const text = readFileSync(join(emitted, `${source}.d.ts`), "utf8");
  writeFileSync(join(output, `${name}.d.ts`), text.replaceAll("../host/contract.ts", "./host.js"));
}
rmSync(emitted, { recursive: true });
