// What the tests share: the run made by make_run.py, and copies of its files with something wrong.

import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const RUN = fileURLToPath(new URL("../build/run/", import.meta.url));
export const SCREENS = fileURLToPath(new URL("../build/screens/", import.meta.url));
if (!existsSync(join(RUN, "expected.json"))) throw new Error("there is no run to test on: use make test-web");

/** [{image, label, values: {FILE: [...]}}]: digits, and what each file gives for them on LiteRT in Python. */
export const expected = JSON.parse(readFileSync(join(RUN, "expected.json"), "utf8"));
export const FILES = Object.keys(expected[0].values);

/** A file that leaves normalising to the app. */
export const TOLD = join(RUN, "..", "told.tflite");

/** A detector, an image for it, and what LiteRT in Python and our own suppression find in it. */
export const DETECTOR = join(RUN, "..", "detector.tflite");
export const SQUARES = join(RUN, "..", "squares.png");
export const boxes = JSON.parse(readFileSync(join(RUN, "..", "boxes.json"), "utf8"));

const scratch = mkdtempSync(join(tmpdir(), "edgeprune-web-"));

export const model = (name) => join(RUN, "files", name);
export const image = ({ image: name }) => join(RUN, name);
export const largest = (values) => values.indexOf(Math.max(...values));

/** Write a file and return its path. */
export function write(name, content) {
  const path = join(scratch, name);
  writeFileSync(path, content);
  return path;
}

/** A copy of a model in which every `text` is replaced by one of the same length. */
export function patched(name, file, text, replacement) {
  const content = readFileSync(model(file)).toString("latin1");
  if (!content.includes(text)) throw new Error(`${file} has no ${text}`);
  return write(name, Buffer.from(content.replaceAll(text, replacement.padEnd(text.length)), "latin1"));
}

/** Names of broken files, what is in them, and what must be said about them. */
export const BROKEN = [
  ["words.tflite", "hello, this is not a model", /not a \.tflite file/, /Failed to load model/],
  ["empty.tflite", "", /not a \.tflite file/, /./],
  ["half.tflite", readFileSync(model(FILES[0])).subarray(0, 6000), /refuses half\.tflite/, /Failed to load model/],
].map(([name, content, onPage, inJob]) => ({ name, path: write(name, content), onPage, inJob }));
