// One model on LiteRT.js, in a worker of its own: a file that crashes the runtime takes nothing else with it.

/** A model ready to run. Make one with `Runtime.load`, and `close` it. */
export class Runtime {
  #worker;
  #waiting = new Map();
  #next = 0;

  constructor() {
    this.#worker = new Worker(new URL("engine.js", document.baseURI));
    this.#worker.onmessage = ({ data }) => this.#settle(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(event.message || "the runtime's worker could not be started");
    };
  }

  /**
   * Start a runtime on the bytes of a `.tflite` file (a Uint8Array).
   * Throws an Error that says why where LiteRT refuses them; details of the model are in `.details`.
   * An AbortSignal ends it, even while a file that makes no sense keeps it busy.
   */
  static async load(bytes, signal) {
    const runtime = new Runtime();
    signal?.addEventListener("abort", () => runtime.close());
    try {
      runtime.details = await runtime.#call("load", { bytes });
    } catch (error) {
      runtime.close();
      throw error;
    }
    return runtime;
  }

  /** The output's values for one image, both Float32Array, the image in the model's own layout. */
  run(image) {
    return this.#call("run", { image });
  }

  /** Milliseconds that one run of the last image takes, the mean of `repeats`. */
  time(repeats) {
    return this.#call("time", { repeats });
  }

  close() {
    this.#fail("the runtime was closed");
  }

  #call(call, parameters) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, ...parameters });
    });
  }

  #settle({ id, value, error }) {
    const call = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) call?.resolve(value);
    else call?.reject(new Error(error));
  }

  #fail(message) {
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(new Error(message));
    this.#waiting.clear();
  }
}
