// From the rows that a detector gives to boxes: decoding, and non-maximum suppression. The same, step by step, as
// edgeprune/tasks/detection/suppression.py does it; docs/formats/detectors.md says what a file tells for it.

const BOX_VALUES = 4;
const BACKGROUND = 1; // values before those of the classes
const MOST_CANDIDATES = 400; // of a class, before suppression
const LARGEST_GROWTH = Math.log(1000 / 16);

const isPositive = (value) => Number.isFinite(value) && value > 0;

/**
 * What a file says of its rows, from the text of its metadata entry "boxes": {anchors: Float64Array of x, y, width,
 * height, count, sizePx, centreScale, sizeScale, leastScore, iouLimit, mostBoxes}; null where it says nothing that can be read.
 */
export function rowsDescription(text) {
  let told;
  try {
    told = JSON.parse(text ?? "null");
  } catch {
    return null;
  }
  const numbers = [told?.size_px, told?.centre_scale, told?.size_scale, told?.most_boxes, told?.iou_limit];
  const fits = (level) =>
    Number.isInteger(level?.cells) && level.cells > 0 && level.cells < 1024 && Array.isArray(level.shapes) &&
    level.shapes.length < 64 && level.shapes.every((shape) => Array.isArray(shape) && shape.length === 2 && shape.every(isPositive));
  if (!numbers.every(isPositive) || !Number.isFinite(told.least_score)) return null;
  if (!Array.isArray(told.levels) || told.levels.length > 16 || !told.levels.every(fits)) return null;
  const anchors = anchorsOf(told.levels, told.size_px);
  return {
    anchors,
    count: anchors.length / BOX_VALUES,
    sizePx: told.size_px,
    centreScale: told.centre_scale,
    sizeScale: told.size_scale,
    leastScore: told.least_score,
    iouLimit: told.iou_limit,
    mostBoxes: told.most_boxes,
  };
}

/** Level by level, row by row, cell by cell, shape by shape. */
function anchorsOf(levels, sizePx) {
  const values = [];
  for (const { cells, shapes } of levels) {
    for (let cell = 0; cell < cells * cells; cell++) {
      const [x, y] = [(cell % cells) + 0.5, Math.floor(cell / cells) + 0.5];
      for (const [width, height] of shapes) {
        values.push((x / cells) * sizePx, (y / cells) * sizePx, width * sizePx, height * sizePx);
      }
    }
  }
  return Float64Array.from(values);
}

/**
 * The boxes of one image, the likeliest first: [{label, score, box: [left, top, right, bottom]}], pixels of the
 * model's image. `rows` has for each anchor a box, the logit of the background and those of `classes` classes.
 */
export function findBoxes(rows, classes, told, leastScore = told.leastScore) {
  const width = BOX_VALUES + BACKGROUND + classes;
  const scores = Array.from({ length: told.count }, (_, row) =>
    softmax(rows.subarray(row * width + BOX_VALUES, (row + 1) * width)),
  );
  const found = [];
  for (let label = 0; label < classes; label++) {
    const likely = scores
      .map((shares, row) => ({ row, label, score: shares[BACKGROUND + label] }))
      .filter(({ score }) => score >= leastScore)
      .sort(likeliestFirst)
      .slice(0, MOST_CANDIDATES)
      .map((one) => ({ ...one, box: decoded(rows, one.row, width, told) }));
    found.push(...suppressed(likely, told.iouLimit));
  }
  return found
    .sort((a, b) => b.score - a.score || a.label - b.label || a.row - b.row)
    .slice(0, told.mostBoxes)
    .map(({ label, score, box }) => ({ label, score, box }));
}

const likeliestFirst = (a, b) => b.score - a.score || a.row - b.row;

/** Of boxes of one class, the likeliest first: those that no likelier one that stays overlaps by more than the limit. */
export function suppressed(boxes, iouLimit) {
  const stays = [];
  for (const one of boxes) {
    if (!stays.some((other) => iou(one.box, other.box) > iouLimit)) stays.push(one);
  }
  return stays;
}

/** Intersection over union of two boxes, 0 where both are empty. */
export function iou(a, b) {
  const across = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const down = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const union = area(a) + area(b) - across * down;
  return union > 0 ? (across * down) / union : 0;
}

function decoded(rows, row, width, { anchors, sizePx, centreScale, sizeScale }) {
  const [x, y, w, h] = rows.subarray(row * width, row * width + BOX_VALUES);
  const [ax, ay, aw, ah] = anchors.subarray(row * BOX_VALUES, (row + 1) * BOX_VALUES);
  const [cx, cy] = [ax + x * centreScale * aw, ay + y * centreScale * ah];
  const grown = (value) => Math.exp(Math.min(value * sizeScale, LARGEST_GROWTH)) / 2;
  const [halfWidth, halfHeight] = [aw * grown(w), ah * grown(h)];
  const inside = (value) => Math.min(Math.max(value, 0), sizePx);
  return [cx - halfWidth, cy - halfHeight, cx + halfWidth, cy + halfHeight].map(inside);
}

function softmax(values) {
  const largest = values.reduce((most, value) => Math.max(most, value), -Infinity);
  const shares = Array.from(values, (value) => Math.exp(value - largest));
  const sum = shares.reduce((total, share) => total + share, 0);
  return shares.map((share) => share / sum);
}
