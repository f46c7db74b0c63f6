// What a `.tflite` file says about itself: the JSON in its metadata named "edgeprune". No file is trusted:
// every read is checked against the file's end, and an entry of an unexpected kind counts as not there.

import { rowsDescription } from "./boxes.js";
import { FILTERS } from "./pixels.js";

const NAME = "edgeprune";
const IDENTIFIER = "TFL3";
// Fields of the tables Model, Metadata and Buffer in LiteRT's schema.
const MODEL = { buffers: 4, metadata: 6 };
const METADATA = { name: 0, buffer: 1 };
const BUFFER = { data: 0 };

/** Whether `bytes` (a Uint8Array) begin as a `.tflite` file does. */
export function isTflite(bytes) {
  return bytes.length >= 8 && String.fromCharCode(...bytes.subarray(4, 8)) === IDENTIFIER;
}

/**
 * What the file says: {range: [low, high] | null, normalization: {mean, std} | null, labels: string[] | null,
 * preparation: {resizePx: number | null, interpolation}}. Each is null where it says nothing that can be read. With a range the file normalises pixels itself, without
 * one the app does.
 */
export function description(bytes) {
  const content = told(bytes);
  const range = content?.input?.range;
  const { mean, std } = content?.input ?? {};
  const labels = content?.labels;
  return {
    range: areNumbers(range, 2) ? range : null,
    normalization: range === null && areDeviations(std) && areNumbers(mean, 3) ? { mean, std } : null,
    preparation: preparation(content?.metadata?.preprocessing),
    labels: Array.isArray(labels) && labels.every((label) => typeof label === "string") ? labels : null,
  };
}

/** What a detector's file says of its rows, see `rowsDescription`; null where it is none. */
export function boxesDescription(bytes) {
  return rowsDescription(told(bytes)?.metadata?.boxes);
}

function told(bytes) {
  try {
    return JSON.parse(metadata(bytes) ?? "null");
  } catch {
    return null;
  }
}

function areNumbers(values, count) {
  return Array.isArray(values) && values.length === count && values.every(Number.isFinite);
}

function areDeviations(values) {
  return areNumbers(values, 3) && values.every((value) => value > 0);
}

/** How images are to be resized before the middle is cropped; the default where the file does not say. */
function preparation(text) {
  let told;
  try {
    told = JSON.parse(text ?? "null");
  } catch {
    told = null;
  }
  const resizePx = Number.isInteger(told?.resize_px) && told.resize_px > 0 ? told.resize_px : null;
  const known = Object.hasOwn(FILTERS, told?.interpolation ?? "");
  const found = { resizePx, interpolation: known ? told.interpolation : "bilinear" };
  return told?.whole_image === true ? { ...found, wholeImage: true } : found;
}

/** The text of our entry; null where there is none. Throws a RangeError where the file is damaged. */
function metadata(bytes) {
  const file = new Flatbuffer(bytes);
  const model = file.root();
  const buffers = file.tables(model, MODEL.buffers);
  for (const entry of file.tables(model, MODEL.metadata)) {
    if (file.text(entry, METADATA.name) !== NAME) continue;
    const buffer = buffers[file.uint32(entry, METADATA.buffer)];
    return buffer === undefined ? null : file.text(buffer, BUFFER.data);
  }
  return null;
}

/** Reads tables of a flatbuffer; a table is the position it starts at. */
class Flatbuffer {
  #bytes;
  #view;

  constructor(bytes) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  root() {
    return this.#target(0);
  }

  /** The tables of a vector of them; none where the field is not set. */
  tables(table, field) {
    const vector = this.#vector(table, field, 4);
    return Array.from({ length: vector.count }, (_, index) => this.#target(vector.start + 4 * index));
  }

  /** A string, or a vector of bytes, as text. */
  text(table, field) {
    const { start, count } = this.#vector(table, field, 1);
    return new TextDecoder().decode(this.#bytes.subarray(start, start + count));
  }

  uint32(table, field) {
    const position = this.#field(table, field);
    return position === null ? 0 : this.#view.getUint32(position, true);
  }

  #vector(table, field, elementBytes) {
    const position = this.#field(table, field);
    if (position === null) return { start: 0, count: 0 };
    const vector = this.#target(position);
    const [start, count] = [vector + 4, this.#view.getUint32(vector, true)];
    if (start + count * elementBytes > this.#bytes.length) throw new RangeError("a vector beyond the end");
    return { start, count };
  }

  #field(table, field) {
    const fields = table - this.#view.getInt32(table, true);
    const entry = 4 + 2 * field;
    const offset = entry < this.#view.getUint16(fields, true) ? this.#view.getUint16(fields + entry, true) : 0;
    return offset === 0 ? null : table + offset;
  }

  #target(position) {
    return position + this.#view.getUint32(position, true);
  }
}
