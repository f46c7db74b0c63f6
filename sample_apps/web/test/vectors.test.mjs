// Against what Python computed: vectors.json of sample_apps/vectors/write_vectors.py, named by EDGEPRUNE_VECTORS.
// The same file is read by the Kotlin and Swift tests.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { findBoxes, rowsDescription, suppressed } from "../src/boxes.js";
import { median, probabilities } from "../src/measure.js";
import { fit, layout, normalizationTo, tensor } from "../src/pixels.js";
import { description } from "../src/tflite.js";

const path = process.env.EDGEPRUNE_VECTORS;
if (!path) throw new Error("EDGEPRUNE_VECTORS: the path of vectors.json; make test-apps writes one");
const vectors = JSON.parse(readFileSync(path, "utf8"));

const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const floats = (text) => new Float32Array(bytes(text).buffer);
const described = (file) => description(new Uint8Array(readFileSync(file)));

const images = Object.fromEntries(
  vectors.images.map(({ name, width_px: width, height_px: height, rgb }) => {
    const [from, data] = [bytes(rgb), new Uint8ClampedArray(4 * width * height).fill(255)];
    for (let pixel = 0; pixel < width * height; pixel++) data.set(from.subarray(3 * pixel, 3 * pixel + 3), 4 * pixel);
    return [name, { data, width, height }];
  }),
);

test("files say of themselves what Python reads", () => {
  assert.ok(vectors.files.length > 0);
  for (const file of vectors.files) {
    const { range, normalization, labels, preparation } = described(file.path);
    assert.deepEqual(
      [range, normalization?.mean ?? null, normalization?.std ?? null, labels],
      [file.range, file.mean, file.std, file.labels],
    );
    assert.deepEqual(preparation, { resizePx: file.resize_px, interpolation: file.interpolation });
  }
});

test("images are resized and cropped as Pillow does", () => {
  for (const { image, size_px: size, resize_px: resizePx, interpolation, whole_image: wholeImage, rgb } of vectors.preparations) {
    const name = `${image} to ${size}, ${resizePx}, ${interpolation}`;
    const how = { resizePx, interpolation, wholeImage };
    assert.deepEqual(new Uint8Array(fit(images[image], size, size, how)), bytes(rgb), name);
  }
});

test("a file is fed the tensor that Python feeds it, and names the same classes", () => {
  assert.ok(vectors.answers.length > 0);
  for (const { file, image, channels_last: channelsLast, tensor: expected, values, top } of vectors.answers) {
    const { range, normalization, labels, preparation } = described(file);
    const { input_shape: shape } = vectors.files.find(({ path }) => path === file);
    const input = layout(shape);
    assert.equal(input.channelsLast, channelsLast);
    const how = range ? normalizationTo(range) : normalization;
    const found = tensor(fit(images[image], input.width, input.height, preparation), input, how);
    assert.ok(floats(expected).every((value, index) => Math.abs(value - found[index]) < 1e-5), `${file} ${image}`);
    const likely = probabilities(values)
      .map((probability, index) => ({ name: labels?.[index] ?? `class ${index}`, probability }))
      .sort((a, b) => b.probability - a.probability);
    assert.deepEqual(likely.slice(0, top.length).map(({ name }) => name), top.map(({ name }) => name));
    top.forEach(({ probability }, index) => assert.ok(Math.abs(probability - likely[index].probability) < 1e-5));
  }
});

test("boxes are suppressed as torchvision does", () => {
  assert.ok(vectors.suppressions.length > 0);
  for (const { boxes, scores, classes, iou_threshold: limit, kept } of vectors.suppressions) {
    const all = boxes.map(([y1, x1, y2, x2], place) => ({ place, box: [x1, y1, x2, y2], score: scores[place], label: classes[place] }));
    const likeliestFirst = (a, b) => b.score - a.score || a.place - b.place;
    const found = [...new Set(classes)].flatMap((label) =>
      suppressed(all.filter((one) => one.label === label).sort(likeliestFirst), limit),
    );
    assert.deepEqual(found.sort(likeliestFirst).map(({ place }) => place), kept);
  }
});

test("rows become the boxes that Python finds", () => {
  assert.ok(vectors.detections.length > 0);
  for (const { boxes, classes, rows, found: expected } of vectors.detections) {
    const found = findBoxes(floats(rows), classes, rowsDescription(boxes));
    assert.deepEqual(found.map(({ label }) => label), expected.map(({ label }) => label));
    found.forEach(({ score, box }, place) => {
      assert.ok(Math.abs(score - expected[place].score) < 1e-5);
      assert.ok(box.every((side, axis) => Math.abs(side - expected[place].corners[axis]) < 1e-3));
    });
  }
});

test("medians are those of edgeprune bench", () => {
  for (const { milliseconds, median: expected } of vectors.timings) {
    assert.ok(Math.abs(median(milliseconds) - expected) < 1e-9);
  }
});
