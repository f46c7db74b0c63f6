package edgeprune.core

import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.min

private const val BOX_VALUES = 4
private const val BACKGROUND = 1 // values before those of the classes
private const val MOST_CANDIDATES = 400 // of a class, before suppression
private const val MOST_CELLS = 1023
private const val MOST_LEVELS = 16
private const val MOST_SHAPES = 63
private val LARGEST_GROWTH = ln(1000.0 / 16)

/** A box that was found, in pixels of the model's image, and which class is how likely in it. */
class Found(val label: Int, val score: Float, val box: Box)

/**
 * How the rows that a detector gives become boxes, as docs/formats/detectors.md says it.
 *
 * anchors: x and y of the centre, width and height for each row, pixels.
 */
class Rows private constructor(
    private val anchors: DoubleArray,
    val sizePx: Double,
    private val centreScale: Double,
    private val sizeScale: Double,
    val leastScore: Double,
    private val iouLimit: Double,
    private val mostBoxes: Int,
) {
    /** How many rows there are. */
    val count = anchors.size / BOX_VALUES

    /** Values of a row for so many classes. */
    fun width(classes: Int) = BOX_VALUES + BACKGROUND + classes

    /**
     * The boxes of one image, the likeliest first. `rows` has for each anchor a box, the logit of the background and
     * those of the classes.
     */
    fun find(rows: FloatArray, classes: Int, leastScore: Double = this.leastScore): List<Found> {
        require(rows.size == count * width(classes)) { "${rows.size} values for $count rows of ${width(classes)}" }
        val scores = List(count) { likelihoods(rows, it, width(classes)) }
        val likely = (0 until classes).flatMap { label ->
            scores.indices
                .filter { scores[it][label] >= leastScore }
                .sortedByDescending { scores[it][label] }
                .take(MOST_CANDIDATES)
                .map { Found(label, scores[it][label], decoded(rows, it, width(classes))) }
        }
        val kept = suppress(
            likely.map { it.box },
            FloatArray(likely.size) { likely[it].score },
            IntArray(likely.size) { likely[it].label },
            iouLimit.toFloat(),
        )
        return kept.take(mostBoxes).map { likely[it] }
    }

    private fun likelihoods(rows: FloatArray, row: Int, width: Int): FloatArray {
        val logits = rows.copyOfRange(row * width + BOX_VALUES, (row + 1) * width)
        val largest = logits.max()
        val shares = DoubleArray(logits.size) { exp((logits[it] - largest).toDouble()) }
        val sum = shares.sum()
        return FloatArray(logits.size - BACKGROUND) { (shares[it + BACKGROUND] / sum).toFloat() }
    }

    private fun decoded(rows: FloatArray, row: Int, width: Int): Box {
        fun value(number: Int) = rows[row * width + number].toDouble()
        fun anchor(number: Int) = anchors[row * BOX_VALUES + number]
        fun centre(axis: Int) = anchor(axis) + value(axis) * centreScale * anchor(axis + 2)
        fun half(axis: Int) = anchor(axis + 2) * exp(min(value(axis + 2) * sizeScale, LARGEST_GROWTH)) / 2
        fun inside(at: Double) = at.coerceIn(0.0, sizePx).toFloat()
        return Box(
            inside(centre(1) - half(1)), inside(centre(0) - half(0)), inside(centre(1) + half(1)), inside(centre(0) + half(0)),
        )
    }

    companion object {
        /** From the text of a file's metadata entry "boxes"; null where it says nothing that can be used. */
        fun of(text: String?): Rows? {
            val told = try {
                text?.let { Json.parse(it) } as? Map<*, *>
            } catch (_: IllegalArgumentException) {
                null
            } ?: return null
            fun positive(name: String) = (told[name] as? Double)?.takeIf { it.isFinite() && it > 0 }
            val least = (told["least_score"] as? Double)?.takeIf { it.isFinite() } ?: return null
            val size = positive("size_px") ?: return null
            return Rows(
                anchors(told["levels"], size) ?: return null,
                size,
                positive("centre_scale") ?: return null,
                positive("size_scale") ?: return null,
                least,
                positive("iou_limit") ?: return null,
                positive("most_boxes")?.toInt() ?: return null,
            )
        }

        /** Level by level, row by row, cell by cell, shape by shape. */
        private fun anchors(levels: Any?, sizePx: Double): DoubleArray? {
            val grids = (levels as? List<*>)?.takeIf { it.size <= MOST_LEVELS } ?: return null
            val values = ArrayList<Double>()
            for (grid in grids) {
                val entry = grid as? Map<*, *> ?: return null
                val cells = (entry["cells"] as? Double)?.toInt()?.takeIf { it in 1..MOST_CELLS } ?: return null
                val boxes = shapes(entry["shapes"]) ?: return null
                for (cell in 0 until cells * cells) {
                    val (x, y) = Pair(cell % cells + 0.5, cell / cells + 0.5)
                    for ((width, height) in boxes) {
                        values += listOf(x / cells * sizePx, y / cells * sizePx, width * sizePx, height * sizePx)
                    }
                }
            }
            return values.toDoubleArray()
        }

        private fun shapes(told: Any?): List<Pair<Double, Double>>? {
            val pairs = (told as? List<*>)?.takeIf { it.size <= MOST_SHAPES } ?: return null
            return pairs.map { pair ->
                val sides = (pair as? List<*>)?.map { (it as? Double)?.takeIf { side -> side.isFinite() && side > 0 } }
                if (sides?.size != 2) return null
                Pair(sides[0] ?: return null, sides[1] ?: return null)
            }
        }
    }
}
