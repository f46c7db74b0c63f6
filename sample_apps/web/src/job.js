// The page that run.mjs drives: one model, its images from the server, its outputs back as base64.

import { Runtime } from "./runtime.js";

let runtime;
let images;

globalThis.job = {
  async open(number) {
    const [model, pixels] = await Promise.all([fetched(`extra/${number}.model`), fetched(`extra/${number}.images`)]);
    images = new Float32Array(pixels.buffer);
    runtime = await Runtime.load(model);
    const { inputs, outputs } = runtime.details;
    if (inputs.length !== 1 || outputs.length !== 1) {
      throw new Error(`${inputs.length} inputs and ${outputs.length} outputs: must be one of each`);
    }
    if (inputs[0].dtype !== "float32" || outputs[0].dtype !== "float32") {
      throw new Error(`${inputs[0].dtype} in, ${outputs[0].dtype} out: LiteRT.js is fed and read as float32 here`);
    }
  },

  /** Run `count` images, the first one last: it is the one that `time` runs. */
  async outputs(count) {
    const size = images.length / count;
    const results = [];
    for (let index = count - 1; index >= 0; index--) {
      results.unshift(await runtime.run(images.slice(index * size, (index + 1) * size)));
    }
    return { values: results[0].length, base64: base64(results) };
  },

  time(repeats) {
    return runtime.time(repeats);
  },
};

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

function base64(arrays) {
  let text = "";
  for (const array of arrays) {
    for (const byte of new Uint8Array(array.buffer)) text += String.fromCharCode(byte);
  }
  return btoa(text);
}
