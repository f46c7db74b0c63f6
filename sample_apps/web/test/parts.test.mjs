// The parts that need no browser: reading what a file says, resizing, timing, serving.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { serve } from "../serve.mjs";
import { median, probabilities, repeats } from "../src/measure.js";
import { findBoxes, iou, rowsDescription, suppressed } from "../src/boxes.js";
import { fit, layout, NORMALIZATIONS, normalizationTo, tensor } from "../src/pixels.js";
import { boxesDescription, description, isTflite } from "../src/tflite.js";
import { boxes, DETECTOR, FILES, model, patched } from "./support.mjs";

const content = new Uint8Array(readFileSync(model(FILES[0])));

test("a file's own words are read", () => {
  const { range, labels } = description(content);
  assert.deepEqual(range, [0, 255]);
  assert.deepEqual(labels, Array.from({ length: 10 }, (_, number) => `digit ${number}`));
});

test("a file that leaves normalising to the app says how", () => {
  const changed = patched("normalised.tflite", FILES[0], '"range":[0.0,255.0]', '"range":null');
  const { range, normalization } = description(new Uint8Array(readFileSync(changed)));
  assert.equal(range, null);
  assert.deepEqual(normalization, { mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] });
});

test("rows become the boxes that Python makes of them", () => {
  const told = rowsDescription(boxes.metadata);
  const found = findBoxes(Float32Array.from(boxes.rows), boxes.labels.length, told);
  assert.ok(boxes.found.length > 0);
  assert.equal(found.length, boxes.found.length);
  found.forEach(({ label, score, box }, place) => {
    const wanted = boxes.found[place];
    assert.equal(label, wanted.label);
    assert.ok(Math.abs(score - wanted.score) < 1e-5);
    box.forEach((side, number) => assert.ok(Math.abs(side - wanted.box[number]) < 1e-3));
  });
});

test("of overlapping boxes the likeliest stays", () => {
  const box = (left, top, right, bottom) => ({ box: [left, top, right, bottom] });
  const given = [box(0, 0, 10, 1), box(2, 0, 12, 1), box(4, 0, 14, 1), box(50, 50, 60, 60)];
  assert.deepEqual(suppressed(given, 0.5), [given[0], given[2], given[3]]);
  assert.deepEqual(suppressed(given, 0.7), given);
  assert.equal(iou([0, 0, 0, 0], [0, 0, 0, 0]), 0);
});

test("a detector's file says how its rows become boxes, and nonsense counts as nothing", () => {
  assert.equal(boxesDescription(new Uint8Array(readFileSync(DETECTOR))).sizePx, 64);
  assert.equal(boxesDescription(content), null);
  for (const text of ["", "{", "{}", "[]", '{"levels":[{"cells":1e9}]}', boxes.metadata.replace('"size_px":64', '"size_px":"64"')]) {
    assert.equal(rowsDescription(text), null);
  }
});

test("words that make no sense count as not there", () => {
  const wrong = [
    ['"range":[0.0,255.0]', '"range":["0","255"]', { range: null }],
    ['"range":[0.0,255.0]', '"range":[0.0]', { range: null }],
    ['"labels":["digit 0"', '"labels":[0,"digit"', { labels: null }],
    ['{"schema":1', '{"schema"', { range: null, labels: null }],
    ['"range":[0.0,255.0],"mean":[0.5', '"range":null,"mean":["0.5"', { range: null, normalization: null }],
    ["edgeprune", "something", { range: null, labels: null }],
  ];
  for (const [text, replacement, expected] of wrong) {
    const changed = new Uint8Array(readFileSync(patched("changed.tflite", FILES[0], text, replacement)));
    assert.deepEqual({ ...description(changed), ...expected }, description(changed), replacement);
  }
});

test("no damage to a file makes reading it throw or hang", () => {
  const nothing = { range: null, normalization: null, preparation: { resizePx: null, interpolation: "bilinear" }, labels: null };
  const words = [nothing, description(content)].map((told) => JSON.stringify(told));
  for (let length = 0; length < content.length; length += 97) {
    assert.ok(words.includes(JSON.stringify(description(content.subarray(0, length)))), `${length} bytes`);
  }
  let seed = 1;
  const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
  for (let trial = 0; trial < 2000; trial++) {
    const damaged = content.slice();
    for (let change = 0; change < 20; change++) damaged[random(trial % 2 ? 400 : damaged.length)] = random(256);
    const { range, labels } = description(damaged);
    assert.ok(range === null || range.every(Number.isFinite));
    assert.ok(labels === null || Array.isArray(labels));
  }
});

test("what begins as a .tflite file does", () => {
  assert.ok(isTflite(content));
  assert.ok(!isTflite(new TextEncoder().encode("hello, this is a text")));
  assert.ok(!isTflite(new Uint8Array(0)));
});

test("an image is cropped and resized as Pillow does", () => {
  const [width, height] = [90, 64];
  const data = new Uint8ClampedArray(width * height * 4);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const x = pixel % width;
    data.set([x * 2, 255 - x, (x * x) % 256, 255], 4 * pixel);
  }
  const across = [...fit({ data, width, height }, 5, 5)].slice(0, 15);
  // The first row of ImageOps.fit(image, (5, 5), Image.Resampling.BILINEAR), Pillow 13.
  const pillow = [38, 236, 118, 63, 223, 114, 89, 211, 132, 115, 198, 107, 140, 185, 104];
  assert.ok(across.every((value, index) => Math.abs(value - pillow[index]) <= 1), `${across}`);
  const turned = new Uint8ClampedArray(data.length); // rows for columns: the other axis
  for (let y = 0; y < width; y++) {
    for (let x = 0; x < height; x++) {
      turned.set(data.subarray(4 * (x * width + y), 4 * (x * width + y) + 4), 4 * (y * height + x));
    }
  }
  const down = fit({ data: turned, width: height, height: width }, 5, 5);
  const column = Array.from({ length: 5 }, (_, row) => [...down.subarray(15 * row, 15 * row + 3)]).flat();
  assert.deepEqual(column, across);
});

test("pixels go where the model's layout has them", () => {
  const rgb = new Uint8ClampedArray([0, 51, 255, 255, 102, 0]); // two pixels
  const last = layout([1, 1, 2, 3]);
  const first = layout([1, 3, 1, 2]);
  assert.deepEqual(last, { height: 1, width: 2, channelsLast: true });
  assert.deepEqual(first, { height: 1, width: 2, channelsLast: false });
  const rounded = (array) => [...array].map((value) => Math.round(value * 1e4) / 1e4);
  assert.deepEqual(rounded(tensor(rgb, last, NORMALIZATIONS.unit)), [0, 0.2, 1, 1, 0.4, 0]);
  assert.deepEqual(rounded(tensor(rgb, first, NORMALIZATIONS.unit)), [0, 1, 0.2, 0.4, 1, 0]);
  assert.deepEqual(rounded(tensor(rgb, last, NORMALIZATIONS.signed)), [-1, -0.6, 1, 1, -0.2, -1]);
  assert.deepEqual(rounded(tensor(rgb, last, normalizationTo([0, 255]))), [0, 51, 255, 255, 102, 0]);
  assert.deepEqual(rounded(tensor(rgb, last, normalizationTo([-1, 1]))), [-1, -0.6, 1, 1, -0.2, -1]);
  for (const shape of [[1, 8, 8, 1], [2, 8, 8, 3], [8, 8, 3], [1, 10]]) {
    assert.throws(() => layout(shape), /not one colour image/);
  }
});

test("numbers", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.equal(repeats(20), 1);
  assert.equal(repeats(1), 5);
  assert.equal(repeats(0), 1000);
  assert.deepEqual(probabilities([0.25, 0.75]), [0.25, 0.75]);
  assert.deepEqual(probabilities([1000, 1000]), [0.5, 0.5]);
});

/** GET a path just as written, which a URL object would tidy up; {status, text}. */
function get(url, path, headers = {}) {
  return new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    request({ hostname, port, path, headers }, (response) => {
      let text = "";
      response.setEncoding("latin1").on("data", (part) => (text += part));
      response.on("end", () => resolve({ status: response.statusCode, text, headers: response.headers }));
    })
      .on("error", reject)
      .end();
  });
}

test("only the page and the run's .tflite files are served", async (context) => {
  const folder = mkdtempSync(join(tmpdir(), "edgeprune-serve-"));
  const run = join(folder, "run");
  mkdirSync(join(run, "files"), { recursive: true });
  writeFileSync(join(run, "files", "a b%.tflite"), "model");
  writeFileSync(join(run, "report.json"), "secret");
  writeFileSync(join(folder, "outside.tflite"), "secret");
  symlinkSync(join(folder, "outside.tflite"), join(run, "link.tflite"));
  const server = await serve({ run });
  context.after(() => server.close());
  assert.match(server.url, /^http:\/\/127\.0\.0\.1:/);
  assert.deepEqual(JSON.parse((await get(server.url, "/run.json")).text), [{ path: "files/a b%.tflite", bytes: 5 }]);
  assert.equal((await get(server.url, "/run/files/a%20b%25.tflite")).text, "model");
  const page = await get(server.url, "/");
  assert.equal(page.status, 200);
  assert.match(page.headers["content-security-policy"], /default-src 'none'/);
  const refused = [
    "/run/../outside.tflite",
    "/run/..%2foutside.tflite",
    "/run/%2e%2e/outside.tflite",
    "/run/..%5coutside.tflite",
    `/run/${encodeURIComponent(join(folder, "outside.tflite"))}`,
    "/run/link.tflite",
    "/run/report.json",
    "/../serve.mjs",
    "/..%2fpackage.json",
    "/%2e%2e%2fpackage.json",
    "//etc/passwd",
    "/%",
    "/%00",
    "/extra/0.model",
    "/run/",
    "/wasm",
    "/__proto__",
  ];
  for (const path of refused) {
    const { status, text } = await get(server.url, path);
    assert.equal(status, 404, path);
    assert.ok(!text.includes("secret"), path);
  }
  assert.equal((await get(server.url, "/", { host: "elsewhere.example" })).status, 403);
});
