// The worker that holds one model. It answers messages {id, call, ...} with {id, value} or {id, error}.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";

// LiteRT.js asks for a GPU before anything else, and warns where there is none; models run on the CPU here.
const NO_GPU = { limits: {}, features: new Set(), requestDevice: async () => null };
Object.defineProperty(self.navigator, "gpu", { value: { requestAdapter: async () => NO_GPU } });

const calls = { load, run, time };
const complaints = [];
let model;
let input;

self.onmessage = async ({ data: { id, call, ...parameters } }) => {
  try {
    const value = await calls[call](parameters);
    // LiteRT.js 2.5.3 gives out what happens to be in memory when a run fails, and says so only here.
    if (complaints.length > 0) throw new Error(withoutPlace(complaints[0]));
    self.postMessage({ id, value });
  } catch (error) {
    const crash = error instanceof WebAssembly.RuntimeError ? "LiteRT.js crashes: " : "";
    self.postMessage({ id, error: crash + (error?.message ?? error) });
  }
};

/** Load LiteRT, then the model in `bytes`; tells what goes in and out, and which WebAssembly runs it. */
async function load({ bytes }) {
  const relaxed = await supportsFeature("relaxedSimd");
  self.Module = {
    // A worker looks beside its own file otherwise.
    locateFile: (name) => new URL(`wasm/${name}`, self.location.href).href,
    print: () => {},
    printErr: (line) => line.startsWith("ERROR") && complaints.push(line),
  };
  await loadLiteRt(new URL("wasm/", self.location.href).href);
  model = await loadAndCompile(new Uint8Array(bytes), { accelerator: "wasm" });
  return {
    inputs: model.getInputDetails().map(plain),
    outputs: model.getOutputDetails().map(plain),
    runtime: `LiteRT.js ${LITERT_JS_VERSION}`,
    build: relaxed ? "WebAssembly with relaxed SIMD" : "WebAssembly with SIMD",
    threads: model.options.cpuOptions.numThreads,
  };
}

/** Run one image, a Float32Array in the model's own layout; it stays for `time`. */
async function run({ image }) {
  input?.delete();
  input = new Tensor(image, [...model.getInputDetails()[0].shape]);
  const [output] = await model.run([input]);
  const values = Float32Array.from(output.toTypedArray());
  output.delete();
  return values;
}

/** Milliseconds of one run of the last image: `repeats` runs under one clock, as its steps are coarse. */
async function time({ repeats }) {
  const started = performance.now();
  for (let turn = 0; turn < repeats; turn++) {
    const outputs = await model.run([input]);
    for (const output of outputs) output.delete();
  }
  return (performance.now() - started) / repeats;
}

function plain({ name, dtype, shape }) {
  return { name, dtype, shape: [...shape] };
}

/** "ERROR: path/to/kernel.cc:12 what is wrong" without all before what is wrong. */
function withoutPlace(line) {
  return line.replace(/^ERROR: (\[[^\]]*\]|\S+\.cc:\d+)?\s*/, "");
}
