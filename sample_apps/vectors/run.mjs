// Holds the plain parts of the sample apps against vectors.json: node run.mjs vectors.json
// JavaScript always; Kotlin where Java 17 or later is; Swift where a compiler is. Says which ran; what is not there is
// said too, and is no failure.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, realpathSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const vectors = resolve(process.argv[2] ?? "build/vectors.json");
const env = { ...process.env, EDGEPRUNE_VECTORS: vectors };

if (!existsSync(vectors)) {
  console.error(`${vectors}: no such file; write_vectors.py makes it`);
  process.exit(2);
}
const failed = [javascript(), kotlin(), swift()].includes(false);
process.exit(failed ? 1 : 0);

function javascript() {
  return run("JavaScript", process.execPath, ["--test", join(here, "../web/test/vectors.test.mjs")]);
}

function kotlin() {
  const compiler = [process.env.KOTLINC, join(here, "node_modules/kotlin-compiler")].find((path) => path && existsSync(path));
  if (!present("java", ["-version"])) return skip("Kotlin", "java is not installed");
  if (!compiler) return skip("Kotlin", "no compiler: npm ci");
  const core = join(here, "../android/core/src");
  const sources = readdirSync(join(core, "main/kotlin/edgeprune/core")).map((name) => join(core, "main/kotlin/edgeprune/core", name));
  const built = join(here, "build/core.jar");
  mkdirSync(join(here, "build"), { recursive: true });
  const jars = join(realpathSync(compiler), "lib");
  const compile = ["-Xmx600m", "-cp", join(jars, "kotlin-preloader.jar"), "org.jetbrains.kotlin.preloading.Preloader"];
  compile.push("-cp", join(jars, "kotlin-compiler.jar"), "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror");
  compile.push("-kotlin-home", realpathSync(compiler), "-jvm-target", "17", "-d", built, ...sources);
  compile.push(join(core, "test/kotlin/edgeprune/core/Vectors.kt"));
  if (!run("Kotlin, compiled", "java", compile)) return false;
  const path = [built, join(jars, "kotlin-stdlib.jar")].join(process.platform === "win32" ? ";" : ":");
  return run("Kotlin", "java", ["-cp", path, "edgeprune.core.VectorsKt", vectors]);
}

function swift() {
  if (!present("swift", ["--version"])) return skip("Swift", "no Swift compiler");
  return run("Swift", "swift", ["test", "--package-path", join(here, "../ios/Core")]);
}

function present(program, options) {
  return spawnSync(program, options).status === 0;
}

function run(name, program, options) {
  const { status, stdout, stderr } = spawnSync(program, options, { env, encoding: "utf8", maxBuffer: 1 << 26 });
  if (status !== 0) console.error(`${stdout}${stderr}`);
  console.log(`${name}: ${status === 0 ? "passed" : "FAILED"}`);
  return status === 0;
}

function skip(name, why) {
  console.log(`${name}: not run: ${why}`);
}
