package edgeprune.core

import kotlin.math.abs
import kotlin.math.exp
import kotlin.math.floor

/** A class and how likely it is, 0 to 1. */
class Likely(val name: String, val probability: Double)

/** Probabilities: the values themselves where they are some already, else their softmax. */
fun probabilities(values: FloatArray): DoubleArray {
    val sum = values.sumOf { it.toDouble() }
    if (values.all { it >= 0 } && abs(sum - 1) < 1e-3) return DoubleArray(values.size) { values[it].toDouble() }
    val largest = values.max()
    val shares = DoubleArray(values.size) { exp(values[it].toDouble() - largest) }
    val whole = shares.sum()
    return DoubleArray(values.size) { shares[it] / whole }
}

/** The `count` likeliest classes, the likeliest first. Labels that are not as many as the values name nothing. */
fun top(values: FloatArray, labels: List<String>?, count: Int): List<Likely> {
    require(values.all { it.isFinite() }) { "the model gives values that are not numbers" }
    val names = labels?.takeIf { it.size == values.size }
    val found = probabilities(values)
    return found.indices.sortedByDescending { found[it] }.take(count).map { Likely(names?.get(it) ?: "class $it", found[it]) }
}

/** The likeliest class of each pixel of a map, rows first; of equal ones the first. */
fun likeliest(values: FloatArray, layout: Layout): IntArray {
    val pixels = layout.heightPx * layout.widthPx
    require(values.size == pixels * layout.channels) { "${values.size} values for a map of $pixels pixels" }
    val (between, step) = if (layout.channelsLast) Pair(layout.channels, 1) else Pair(1, pixels)
    return IntArray(pixels) { pixel ->
        (0 until layout.channels).maxBy { values[pixel * between + it * step] }
    }
}

/** Median and quartiles, between two values where they fall so. */
class Spread(val low: Double, val median: Double, val high: Double) {
    companion object {
        fun of(milliseconds: List<Double>): Spread {
            require(milliseconds.isNotEmpty()) { "no times" }
            val sorted = milliseconds.sorted()
            fun at(fraction: Double): Double {
                val place = fraction * (sorted.size - 1)
                val below = floor(place).toInt()
                val above = minOf(below + 1, sorted.size - 1)
                return sorted[below] + (place - below) * (sorted[above] - sorted[below])
            }
            return Spread(at(0.25), at(0.5), at(0.75))
        }
    }
}
