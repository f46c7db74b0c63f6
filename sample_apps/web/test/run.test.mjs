// run.mjs does a job as worker.py does: right values, times, and a refusal that stops nobody else.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { inflateSync } from "node:zlib";
import { BROKEN, expected, FILES, image, model, patched, write } from "./support.mjs";

const LIMIT_MS = 120_000;
const PROGRAM = fileURLToPath(new URL("../run.mjs", import.meta.url));

/** Run a job on the given models with the test's digits as images: {status, stderr, steps, result, outputs}. */
function run(paths, { rounds = 0, warmup = 1, threads = 1, clock = "wall", environment = {} } = {}) {
  const pixels = expected.map(digitPixels);
  const images = write("images", Buffer.concat(pixels.map((values) => Buffer.from(values.buffer))));
  const tasks = paths.map((path, number) => {
    const outputs = write(`${number}.outputs`, "");
    return { model: path, images, count: expected.length, outputs };
  });
  const result = `${write("result.json", "")}.done-${Math.random()}`;
  const job = write("job.json", JSON.stringify({ clock, threads, warmup, rounds, result, tasks }));
  const done = spawnSync(process.execPath, [PROGRAM, job], {
    encoding: "utf8",
    timeout: LIMIT_MS,
    env: { ...process.env, ...environment },
  });
  return {
    ...done,
    steps: done.stdout.trim().split("\n").filter(Boolean).map((line) => JSON.parse(line)),
    result: existsSync(result) ? JSON.parse(readFileSync(result, "utf8")) : null,
    outputs: tasks.map(({ outputs }) => new Float32Array(new Uint8Array(readFileSync(outputs)).buffer)),
  };
}

/** A digit's pixels, NHWC, from its 8-bit RGB image: PNG's own filters undone by hand. */
function digitPixels(digit) {
  const file = readFileSync(image(digit));
  const [width, height] = [file.readUInt32BE(16), file.readUInt32BE(20)];
  const parts = [];
  for (let at = 8; at < file.length; at += 12 + file.readUInt32BE(at)) {
    if (file.toString("latin1", at + 4, at + 8) === "IDAT") parts.push(file.subarray(at + 8, at + 8 + file.readUInt32BE(at)));
  }
  const lines = inflateSync(Buffer.concat(parts));
  const stride = 3 * width;
  const pixels = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const filter = lines[y * (stride + 1)];
    for (let x = 0; x < stride; x++) {
      const left = x < 3 ? 0 : pixels[y * stride + x - 3];
      const up = y === 0 ? 0 : pixels[(y - 1) * stride + x];
      const corner = x < 3 || y === 0 ? 0 : pixels[(y - 1) * stride + x - 3];
      const guess = [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
      pixels[y * stride + x] = lines[y * (stride + 1) + 1 + x] + guess;
    }
  }
  return Float32Array.from(pixels);
}

function paeth(left, up, corner) {
  const [a, b, c] = [up - corner, left - corner, left + up - 2 * corner].map(Math.abs);
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

test("every file gives Python's values, and is timed in turns", () => {
  const { status, stderr, steps, result, outputs } = run(FILES.map(model), { rounds: 3, warmup: 1 });
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert.match(result.version, /^LiteRT\.js 2\.5\.3, Chromium \d+\.\d+/);
  FILES.forEach((file, number) => {
    assert.equal(result.tasks[number].refused, null);
    assert.equal(result.tasks[number].values, 10);
    assert.equal(result.tasks[number].milliseconds.length, 3);
    assert.ok(result.tasks[number].milliseconds.every((value) => value > 0.001 && value < 1000));
    const wanted = expected.flatMap(({ values }) => values[file]);
    const scale = Math.max(...wanted.map(Math.abs));
    assert.equal(outputs[number].length, wanted.length);
    assert.ok(wanted.every((value, index) => Math.abs(value - outputs[number][index]) / scale < 1e-4), file);
  });
  const turns = FILES.map((_, number) => number);
  assert.deepEqual(steps.map(({ task }) => task), [0, 1, 2, 3, 4].flatMap(() => turns));
  assert.deepEqual(steps.map(({ step }) => step), steps.map((_, index) => index));
  assert.ok(steps.every(({ of }) => of === steps.length));
});

test("a file that cannot be run is refused, the others go on", () => {
  const narrow = patched("named.tflite", FILES[0], "edgeprune", "something");
  const { status, result, outputs } = run([...BROKEN.map(({ path }) => path), narrow], { rounds: 1 });
  assert.equal(status, 0);
  BROKEN.forEach(({ name, inJob }, number) => {
    assert.match(result.tasks[number].refused, inJob, name);
    assert.deepEqual(result.tasks[number].milliseconds, []);
  });
  assert.equal(result.tasks.at(-1).refused, null);
  assert.equal(outputs.at(-1).length, 10 * expected.length);
});

const MISTAKES = [
  [{ threads: 2 }, /one thread, not 2/],
  [{ clock: "process" }, /no clock of processor time/],
  [{ environment: { CHROMIUM: "/nowhere/chromium" } }, /CHROMIUM is \/nowhere\/chromium, which is not a program/],
  [{ environment: { CHROMIUM: "", PATH: "/nowhere" } }, /not installed: install it .*CHROMIUM=PATH/],
  [{ environment: { CHROMIUM: "/bin/true" } }, /\/bin\/true does not start as Chromium/],
];
for (const [options, message] of MISTAKES) {
  test(`one line for ${JSON.stringify(options)}`, () => {
    const { status, stderr, result } = run([model(FILES[0])], options);
    assert.equal(status, 2);
    assert.match(stderr, message);
    assert.equal(stderr.trim().split("\n").length, 1);
    assert.equal(result, null);
  });
}
