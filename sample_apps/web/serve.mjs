// Serves the page, LiteRT's WebAssembly and a run's `.tflite` files, to this machine only.
//
//     npm start -- --run RUN_FOLDER [--port 8000]

import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const HOST = "127.0.0.1";
const DIST = fileURLToPath(new URL("dist/", import.meta.url));
const DEEPEST = 4; // folders below the run's that are searched
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json; charset=utf-8",
  ".wasm": "application/wasm",
};
const HEADERS = {
  // The page may load nothing from elsewhere.
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; " +
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  // A page isolated like this has a clock of 5 microseconds, others one of 100.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-store",
};

/**
 * Start a server; `port` 0 takes any free one. Returns {url, close}.
 *
 * Only what was found by listing is served, by its name in the list: dist/ under "/", the `.tflite` files of `run`
 * under "/run/", and `extra`, a Map from a name to a path, under "/extra/".
 */
export async function serve({ run = null, port = 0, extra = new Map() } = {}) {
  const pages = new Map((await list(DIST)).map((name) => [name, join(DIST, name)]));
  const server = createServer(async (request, response) => {
    try {
      await answer(request, response);
    } catch (error) {
      if (!response.headersSent) refuse(response, 500, error.message);
      else response.destroy();
    }
  });

  async function answer(request, response) {
    if (!hostIsThis(request.headers.host)) return refuse(response, 403, "only this machine is served");
    if (!["GET", "HEAD"].includes(request.method)) return refuse(response, 405, "GET only");
    const path = decoded(request.url.split("?")[0]);
    if (path === "/run.json") return json(response, await runFiles());
    const file = await locate(path);
    return file === undefined ? refuse(response, 404, "no such file") : send(request, response, file);
  }

  /** Other sites may point their own name at this address; theirs is in the request then. */
  function hostIsThis(host) {
    return [HOST, "localhost"].some((name) => host === `${name}:${server.address().port}`);
  }

  async function locate(path) {
    if (path.startsWith("/extra/")) return extra.get(path.slice("/extra/".length));
    if (path.startsWith("/run/")) {
      const name = path.slice("/run/".length);
      return run !== null && (await modelNames()).includes(name) ? join(run, name) : undefined;
    }
    return pages.get(path === "/" ? "index.html" : path.slice(1));
  }

  async function modelNames() {
    return (await list(run)).filter((name) => name.endsWith(".tflite")).sort();
  }

  async function runFiles() {
    if (run === null) return null;
    return Promise.all(
      (await modelNames()).map(async (path) => ({ path, bytes: (await stat(join(run, path))).size })),
    );
  }

  await new Promise((done, fail) => server.once("error", fail).listen(port, HOST, done));
  return {
    url: `http://${HOST}:${server.address().port}/`,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Names, with slashes, of the plain files below a folder; links are not followed. */
async function list(folder, below = folder, depth = 0) {
  const entries = await readdir(below, { withFileTypes: true });
  const names = await Promise.all(
    entries.map((entry) => {
      const path = join(below, entry.name);
      if (entry.isFile()) return [relative(folder, path).split(sep).join("/")];
      return entry.isDirectory() && depth < DEEPEST ? list(folder, path, depth + 1) : [];
    }),
  );
  return names.flat();
}

function decoded(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return "";
  }
}

async function send(request, response, file) {
  const { size } = await stat(file);
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": size });
  if (request.method === "HEAD") return response.end();
  return createReadStream(file).on("error", () => response.destroy()).pipe(response);
}

function json(response, content) {
  response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[".json"] });
  response.end(JSON.stringify(content));
}

function refuse(response, status, reason) {
  response.writeHead(status, { ...HEADERS, "Content-Type": "text/plain; charset=utf-8" });
  response.end(`${reason}\n`);
}

async function main() {
  const usage = "usage: npm start -- [--run RUN_FOLDER] [--port 8000]";
  let options;
  try {
    options = parseArgs({ options: { run: { type: "string" }, port: { type: "string", default: "8000" } } }).values;
  } catch (error) {
    return fail(`${error.message}\n${usage}`);
  }
  const port = Number(options.port);
  if (!Number.isInteger(port) || port < 0 || port > 65535) return fail(`--port ${options.port}: not a port\n${usage}`);
  // npm runs this in its own folder, and keeps where it was called from.
  const run = options.run === undefined ? null : resolve(process.env.INIT_CWD ?? ".", options.run);
  try {
    if (run !== null && !(await stat(run)).isDirectory()) return fail(`--run ${run}: not a folder`);
    console.log(`${(await serve({ run, port })).url} (Ctrl-C stops it)`);
  } catch (error) {
    return fail(explained(error, run, port));
  }
}

function explained(error, run, port) {
  if (error.code === "EADDRINUSE") return `port ${port} is taken: choose another with --port`;
  if (error.code === "ENOENT" && error.path === run) return `--run ${run}: no such folder`;
  if (error.code === "ENOENT") return "the page is not bundled: run make runtime-browser";
  return error.message;
}

function fail(message) {
  console.error(`error: ${message}`);
  process.exitCode = 2;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
