/** Bundles test/*.test.ts, since Node 20 cannot run TypeScript, and runs the bundles. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const output = mkdtempSync(join(tmpdir(), "widget-tests-"));
const names = readdirSync(join(here, "test")).filter((name) => name.endsWith(".test.ts"));
await build({
  entryPoints: names.map((name) => join(here, "test", name)),
  outdir: output,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  define: { LANGUAGES: '"en de"', BUILD: '""' },
  platform: "node",
  format: "esm",
  banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
});
const files = names.map((name) => join(output, name.replace(/ts$/, "mjs")));
const { status } = spawnSync(process.execPath, ["--test", ...files], { cwd: here, stdio: "inherit" });
rmSync(output, { recursive: true });
process.exit(status ?? 1);
