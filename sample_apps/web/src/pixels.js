// From an image to a model's input, the way the training side reads held-out images: upright, the middle cropped
// to the model's proportions, resized with Pillow's antialiased filters (a canvas would use the browser's own).

const CHANNELS = 3;
// Pillow counts shares in whole numbers of 2^-22.
const ONE = 1 << 22;

/** Ways to give pixels to a model that does not normalise them itself: (pixel / 255 - mean) / std. */
export const NORMALIZATIONS = {
  bytes: { label: "0 to 255, as they are", mean: [0, 0, 0], std: [1 / 255, 1 / 255, 1 / 255] },
  unit: { label: "0 to 1", mean: [0, 0, 0], std: [1, 1, 1] },
  signed: { label: "−1 to 1", mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] },
  imagenet: { label: "ImageNet's mean and deviation", mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] },
};

/** Pillow's filters by name: how many pixels to either side count (0: only the nearest), and how much. */
export const FILTERS = {
  nearest: { support: 0, share: null },
  bilinear: { support: 1, share: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, share: cubic },
  lanczos: { support: 3, share: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function cubic(x) {
  const [a, t] = [-0.5, Math.abs(x)];
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? ((t - 5) * t + 8) * t * a - 4 * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** The normalisation that gives pixels in [low, high]. */
export function normalizationTo([low, high]) {
  const std = 1 / (high - low);
  return { label: `${low} to ${high}`, mean: Array(CHANNELS).fill(-low * std), std: Array(CHANNELS).fill(std) };
}

/**
 * Where an input tensor of `shape` keeps its image: {height, width, channelsLast}.
 * Throws an Error where it does not take one colour image.
 */
export function layout(shape) {
  const [batch, ...rest] = shape;
  if (shape.length === 4 && batch === 1 && rest[2] === CHANNELS) {
    return { height: rest[0], width: rest[1], channelsLast: true };
  }
  if (shape.length === 4 && batch === 1 && rest[0] === CHANNELS) {
    return { height: rest[1], width: rest[2], channelsLast: false };
  }
  throw new Error(`The model takes [${shape.join(", ")}], which is not one colour image.`);
}

/** Decode a file (a Blob) to {data: RGBA bytes, width, height}, turned upright. Throws an Error if it cannot be. */
export async function decode(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This is not an image that the browser can read.");
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  try {
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, width, height);
  } catch {
    throw new Error(`The image is too large for the browser: ${width} × ${height} pixels.`);
  } finally {
    bitmap.close();
  }
}

/**
 * Resize and crop the middle: (height * width * 3) RGB bytes, rows first.
 * With `resizePx` the whole image is resized until its shorter side has that many pixels, then the middle is
 * cropped; without it the largest middle part of the model's proportions is cropped first, then resized. With
 * `wholeImage` nothing is cropped: the image is squeezed.
 */
export function fit(image, width, height, { resizePx = null, interpolation = "bilinear", wholeImage = false } = {}) {
  const filter = FILTERS[interpolation];
  const resized = resizePx !== null && resizePx >= Math.max(width, height);
  const cropped = resized ? resizedAxes(image, width, height, resizePx) : croppedAxes(image, width, height);
  const axes = wholeImage ? squeezedAxes(image, width, height) : cropped;
  const columns = weights(axes.across, image.width, filter);
  const rows = weights(axes.down, image.height, filter);
  const [before, after] = [4, CHANNELS]; // bytes a pixel
  // One way after the other, rounding to bytes between, as Pillow does. Which way it goes first was found by trying
  // version 13: down where that takes away more than twice as many rows as going across takes columns.
  const rowsGone = image.height - axes.down.whole;
  if (rowsGone > 0 && rowsGone > 2 * (image.width - axes.across.whole)) {
    const tall = resample(
      image.data,
      { lines: image.width, step: before * image.width, stride: before },
      rows,
      { step: after * image.width, stride: after },
    );
    const across = { lines: height, step: after, stride: after * image.width };
    return resample(tall, across, columns, { step: after, stride: after * width });
  }
  const wide = resample(
    image.data,
    { lines: image.height, step: before, stride: before * image.width },
    columns,
    { step: after, stride: after * width },
  );
  const down = { lines: width, step: after * width, stride: after };
  return resample(wide, down, rows, down);
}

/**
 * Along each axis: where what is resized starts, its pixels a new pixel, how many new ones there are on the whole,
 * and which of them are wanted.
 */
function croppedAxes(image, width, height) {
  const scale = Math.min(image.width / width, image.height / height);
  return {
    across: { start: (image.width - scale * width) / 2, scale, whole: width, first: 0, count: width },
    down: { start: (image.height - scale * height) / 2, scale, whole: height, first: 0, count: height },
  };
}

function squeezedAxes(image, width, height) {
  return {
    across: { start: 0, scale: image.width / width, whole: width, first: 0, count: width },
    down: { start: 0, scale: image.height / height, whole: height, first: 0, count: height },
  };
}

function resizedAxes(image, width, height, resizePx) {
  const shorter = Math.min(image.width, image.height);
  const along = (side, count) => {
    const resized = side === shorter ? resizePx : Math.trunc((resizePx * side) / shorter);
    return { start: 0, scale: side / resized, whole: resized, first: halfToEven((resized - count) / 2), count };
  };
  return { across: along(image.width, width), down: along(image.height, height) };
}

/** Rounded as Python and torchvision do. */
function halfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

/** RGB bytes to the Float32Array that a model of this layout takes. */
export function tensor(rgb, { channelsLast }, { mean, std }) {
  const pixels = rgb.length / CHANNELS;
  const values = new Float32Array(rgb.length);
  for (let pixel = 0; pixel < pixels; pixel++) {
    for (let channel = 0; channel < CHANNELS; channel++) {
      const value = (rgb[pixel * CHANNELS + channel] / 255 - mean[channel]) / std[channel];
      values[channelsLast ? pixel * CHANNELS + channel : channel * pixels + pixel] = value;
    }
  }
  return values;
}

/**
 * For each of the new pixels of a line, which of the `limit` old ones it is made of, and how much of each: the
 * filter is as wide as a new pixel where the line shrinks, as an old one where it grows.
 */
function weights(axis, limit, { support, share }) {
  const { start, scale, first: skipped, count } = axis;
  if (support === 0) return nearest(axis, limit);
  const stretch = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const centre = start + (skipped + index + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support * stretch + 0.5));
    const last = Math.min(limit, Math.floor(centre + support * stretch + 0.5));
    const shares = Array.from({ length: last - first }, (_, offset) =>
      share((first + offset - centre + 0.5) / stretch),
    );
    const sum = shares.reduce((total, part) => total + part, 0);
    return { first, shares: shares.map((part) => counted(part / sum)) };
  });
}

function counted(share) {
  return Math.trunc(share * ONE + (share < 0 ? -0.5 : 0.5));
}

/** The old pixel at each new one's centre; centres are added up, as Pillow does, rounding errors and all. */
function nearest({ start, scale, first, count }, limit) {
  let centre = start + scale * 0.5;
  for (let skipped = 0; skipped < first; skipped++) centre += scale;
  return Array.from({ length: count }, () => {
    const tap = { first: Math.min(Math.max(Math.floor(centre), 0), limit - 1), shares: [ONE] };
    centre += scale;
    return tap;
  });
}

/** Resize along one axis: `step` bytes from pixel to pixel on it, `stride` from one of its lines to the next. */
function resample(source, from, taps, to) {
  const result = new Uint8ClampedArray(from.lines * taps.length * CHANNELS);
  for (let line = 0; line < from.lines; line++) {
    for (let index = 0; index < taps.length; index++) {
      const { first, shares } = taps[index];
      for (let channel = 0; channel < CHANNELS; channel++) {
        let position = line * from.stride + first * from.step + channel;
        let sum = ONE / 2;
        for (const share of shares) {
          sum += share * source[position];
          position += from.step;
        }
        result[line * to.stride + index * to.step + channel] = Math.floor(sum / ONE);
      }
    }
  }
  return result;
}
