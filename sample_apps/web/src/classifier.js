// A `.tflite` file as an image classifier or detector: what it says about itself, and LiteRT.js to run it.

import { findBoxes } from "./boxes.js";
import { probabilities } from "./measure.js";
import { fit, layout, normalizationTo, tensor } from "./pixels.js";
import { Runtime } from "./runtime.js";
import { boxesDescription, description, isTflite } from "./tflite.js";

/** A file ready to classify images. Make one with `Classifier.load`, and `close` it. */
export class Classifier {
  #layout;
  #normalization;
  #preparation;

  /** Throws an Error with one readable sentence where the file is none, or LiteRT.js refuses it. */
  static async load(name, content, signal) {
    if (!isTflite(content)) throw new Error(`${name} is not a .tflite file.`);
    let runtime;
    try {
      runtime = await Runtime.load(content, signal);
    } catch (error) {
      throw new Error(`LiteRT.js refuses ${name}: ${error.message}.`);
    }
    try {
      return new Classifier(name, content, runtime);
    } catch (error) {
      runtime.close();
      throw error;
    }
  }

  constructor(name, content, runtime) {
    const { inputs, outputs } = runtime.details;
    if (inputs.length !== 1 || outputs.length !== 1) {
      throw new Error(`${name} takes ${inputs.length} inputs and gives ${outputs.length}; one of each is needed.`);
    }
    if (inputs[0].dtype !== "float32" || outputs[0].dtype !== "float32") {
      throw new Error(`${name} takes ${inputs[0].dtype} and gives ${outputs[0].dtype}; float32 is needed.`);
    }
    const { range, normalization, labels, preparation } = description(content);
    this.name = name;
    this.#preparation = preparation;
    this.bytes = content.length;
    this.runtime = runtime;
    this.outputs = outputs[0].shape.reduce((product, side) => product * side, 1);
    this.rows = rowsOf(outputs[0].shape, content, labels);
    // Names that do not match the classes would name the wrong ones.
    this.labels = labels?.length === this.outputs || this.rows !== null ? labels : null;
    const takesPixels = range !== null && range[0] < range[1];
    this.#normalization = takesPixels ? normalizationTo(range) : normalization;
    this.takesPixels = takesPixels;
    this.saysWhatItTakes = this.#normalization !== null;
    this.#layout = layout(inputs[0].shape);
  }

  get width() {
    return this.#layout.width;
  }

  get height() {
    return this.#layout.height;
  }

  /** What the model sees of an image: RGBA {data, width, height}. */
  seen(image) {
    const { width, height } = this.#layout;
    const rgb = fit(image, width, height, this.#preparation);
    const data = new Uint8ClampedArray(width * height * 4).fill(255);
    for (let pixel = 0; pixel < width * height; pixel++) data.set(rgb.subarray(3 * pixel, 3 * pixel + 3), 4 * pixel);
    return { data, width, height };
  }

  /**
   * All classes, the likeliest first: [{name, probability}].
   * `normalization` counts only where the file does not say what it wants.
   */
  async classify(image, normalization) {
    const values = await this.#run(image, normalization);
    return probabilities(values)
      .map((probability, index) => ({ name: this.labels?.[index] ?? `class ${index}`, probability }))
      .sort((a, b) => b.probability - a.probability);
  }

  /** Whether the file gives boxes with a class each. */
  get findsBoxes() {
    return this.rows !== null;
  }

  /**
   * The boxes in an image, the likeliest first: [{name, label, score, box: [left, top, right, bottom]}], in pixels of
   * what `seen` gives. `normalization` as for `classify`.
   */
  async find(image, normalization) {
    const values = await this.#run(image, normalization);
    return findBoxes(values, this.labels.length, this.rows).map((found) => ({ ...found, name: this.labels[found.label] }));
  }

  async #run(image, normalization) {
    const rgb = fit(image, this.width, this.height, this.#preparation);
    const input = tensor(rgb, this.#layout, this.#normalization ?? normalization);
    const values = await this.runtime.run(input).catch((error) => {
      throw new Error(`LiteRT.js cannot run ${this.name}: ${error.message}.`);
    });
    if (!values.every(Number.isFinite)) throw new Error(`${this.name} gives values that are not numbers.`);
    return values;
  }

  close() {
    this.runtime.close();
  }
}

const BEFORE_CLASSES = 5; // values of a row: its box, and the background

/** What the file says of its rows, if that is what its output has; else null. */
function rowsOf(shape, content, labels) {
  const told = boxesDescription(content);
  const fits = shape.length === 3 && shape[1] === told?.count && shape[2] === BEFORE_CLASSES + labels?.length;
  return fits ? told : null;
}
