// Timing in turns, the same for the page and for `edgeprune bench --runtime browser`.

const SAMPLE_MS = 5; // A browser's clock has coarse steps; a sample this long makes them harmless.
const WARMUP_MS = 150; // WebAssembly is compiled again, for speed, after its first runs.
const MOST_REPEATS = 1000;

/** How many runs of about `milliseconds` each fill one sample. */
export function repeats(milliseconds, sample_ms = SAMPLE_MS) {
  return Math.min(MOST_REPEATS, Math.max(1, Math.ceil(sample_ms / Math.max(milliseconds, 1e-3))));
}

/** Runs that warm a model up, given how long its last run took. */
export function warmupRepeats(milliseconds) {
  return repeats(milliseconds, WARMUP_MS);
}

/** The middle of a list of numbers. */
export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Probabilities: the values themselves where they are some already, else their softmax. */
export function probabilities(values) {
  const sum = values.reduce((total, value) => total + value, 0);
  if (values.every((value) => value >= 0) && Math.abs(sum - 1) < 1e-3) return [...values];
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const shares = Array.from(values, (value) => Math.exp(value - largest));
  const whole = shares.reduce((total, share) => total + share, 0);
  return shares.map((share) => share / whole);
}
