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
const types = ["-p", here, "--noEmit", "false", "--emitDeclarationOnly", "--declaration", "--rootDir", join(here, "src"), "--outDir", join(output, "all")];
const { status } = spawnSync(join(here, "node_modules/.bin/tsc"), types, { stdio: "inherit" });
if (status) process.exit(status);
const all = join(output, "all");
for (const name of ["entries/npm", "host/element"]) {
  const text = readFileSync(join(all, `${name}.d.ts`), "utf8");
  mkdirSync(join(output, "types", dirname(name)), { recursive: true });
  writeFileSync(join(output, "types", `${name}.d.ts`), text.replaceAll('.ts"', '.js"'));
}
writeFileSync(join(output, "index.d.ts"), 'export * from "./types/entries/npm.js";\n');
rmSync(all, { recursive: true });
