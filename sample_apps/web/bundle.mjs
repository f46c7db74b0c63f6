// Bundles the page, and the worker that runs the models, into dist/, beside LiteRT's WebAssembly.

import { build } from "esbuild";
import { cp, mkdir, readFile, rm } from "node:fs/promises";

const HERE = new URL("./", import.meta.url);
const CORE = new URL("node_modules/@litertjs/core/", HERE);
const DIST = new URL("dist/", HERE);
// With relaxed SIMD, and for browsers without it.
const WASM = ["litert_wasm_internal", "litert_wasm_compat_internal"];

const { version } = JSON.parse(await readFile(new URL("package.json", CORE), "utf8"));
const settings = {
  bundle: true,
  minify: true,
  target: "es2022",
  legalComments: "eof",
  define: { LITERT_JS_VERSION: JSON.stringify(version) },
  absWorkingDir: HERE.pathname,
  outdir: "dist",
  logLevel: "warning",
};

await rm(DIST, { recursive: true, force: true });
await mkdir(new URL("wasm/", DIST), { recursive: true });
await build({ ...settings, entryPoints: ["src/page.js", "src/job.js"], format: "esm" });
// LiteRT.js loads its WebAssembly with importScripts, which only a classic worker has.
await build({ ...settings, entryPoints: ["src/engine.js"], format: "iife" });
for (const file of ["index.html", "job.html", "style.css"]) {
  await cp(new URL(`src/${file}`, HERE), new URL(file, DIST));
}
for (const name of WASM) {
  for (const ending of ["js", "wasm"]) {
    await cp(new URL(`wasm/${name}.${ending}`, CORE), new URL(`wasm/${name}.${ending}`, DIST));
  }
}
