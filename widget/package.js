/** Builds dist/, what the npm package holds: one module with its app beside it, and the types, from the same sources. */
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
  entryPoints: [join(here, "src/index.ts")],
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
const types = ["-p", here, "--noEmit", "false", "--emitDeclarationOnly", "--declaration", "--rootDir", join(here, "src"), "--outDir", join(output, "all")];
const { status } = spawnSync(join(here, "node_modules/.bin/tsc"), types, { stdio: "inherit" });
if (status) process.exit(status);
const all = join(output, "all");
for (const name of ["index", "host"]) {
  const text = readFileSync(join(all, `${name}.d.ts`), "utf8");
  writeFileSync(join(output, `${name}.d.ts`), text.replaceAll('.ts"', '.js"'));
}
rmSync(all, { recursive: true });
