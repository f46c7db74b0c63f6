package edgeprune.core

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round
import kotlin.math.sin

/** An RGB image: 3 bytes a pixel, rows first. */
class RgbImage(val widthPx: Int, val heightPx: Int, val bytes: ByteArray) {
    init {
        require(bytes.size == COLOURS * widthPx * heightPx) { "${bytes.size} bytes for $widthPx x $heightPx pixels" }
    }
}

/** Pillow's antialiased filters: how many pixels to either side count (0: only the nearest), and how much. */
enum class Interpolation(internal val support: Int, internal val share: (Double) -> Double) {
    NEAREST(0, { 1.0 }),
    BILINEAR(1, { max(0.0, 1 - abs(it)) }),
    BICUBIC(2, ::cubic),
    LANCZOS(3, { if (abs(it) < 3) sinc(it) * sinc(it / 3) else 0.0 });

    companion object {
        /** By the name that files have; bilinear where they have none. */
        fun named(name: Any?): Interpolation = entries.firstOrNull { it.name.lowercase() == name } ?: BILINEAR
    }
}

private fun cubic(x: Double): Double {
    val a = -0.5
    val t = abs(x)
    return when {
        t < 1 -> ((a + 2) * t - (a + 3)) * t * t + 1
        t < 2 -> ((t - 5) * t + 8) * t * a - 4 * a
        else -> 0.0
    }
}

private fun sinc(x: Double) = if (x == 0.0) 1.0 else sin(PI * x) / (PI * x)

/**
 * Resize and crop the middle, as the training side does; with `wholeImage` nothing is cropped: the image is squeezed.
 * With `resizePx` the whole image is resized until its shorter side has that many pixels, then the middle is cropped;
 * without it the largest middle part of the wanted proportions is cropped first, then resized.
 */
fun fit(
    image: RgbImage, widthPx: Int, heightPx: Int, resizePx: Int?, interpolation: Interpolation, wholeImage: Boolean = false,
): RgbImage {
    val (across, down) = when {
        wholeImage -> Pair(squeezed(image.widthPx, widthPx), squeezed(image.heightPx, heightPx))
        resizePx != null && resizePx >= max(widthPx, heightPx) -> resized(image, widthPx, heightPx, resizePx)
        else -> cropped(image, widthPx, heightPx)
    }
    val columns = taps(across, image.widthPx, interpolation)
    val rows = taps(down, image.heightPx, interpolation)
    // One way after the other, rounding to bytes between, as Pillow does. Which way it goes first was found by trying
    // version 13: down where that takes away more than twice as many rows as going across takes columns.
    val rowsGone = image.heightPx - down.whole
    return if (rowsGone > 0 && rowsGone > 2 * (image.widthPx - across.whole)) {
        resampledAcross(resampledDown(image, rows), columns)
    } else {
        resampledDown(resampledAcross(image, columns), rows)
    }
}

/**
 * RGB bytes to what a model takes: in `range`, which is plain pixels, or normalised.
 * Channels first or last, as the model has them.
 */
fun tensor(image: RgbImage, channelsLast: Boolean, range: Pair<Double, Double>?, normalization: Normalization?): FloatArray {
    val pixels = image.widthPx * image.heightPx
    val values = FloatArray(image.bytes.size)
    for (pixel in 0 until pixels) {
        for (channel in 0 until COLOURS) {
            val byte = (image.bytes[COLOURS * pixel + channel].toInt() and 0xff) / 255.0
            val value = when {
                range != null -> range.first + byte * (range.second - range.first)
                normalization != null -> (byte - normalization.mean[channel]) / normalization.std[channel]
                else -> throw IllegalArgumentException("the file does not say how pixels are normalised")
            }
            values[if (channelsLast) COLOURS * pixel + channel else channel * pixels + pixel] = value.toFloat()
        }
    }
    return values
}

/**
 * Along an axis: where what is resized starts, its pixels a new pixel, how many new ones there are on the whole, and
 * which of them are wanted.
 */
private class Axis(val start: Double, val scale: Double, val whole: Int, val first: Int, val count: Int)

private fun squeezed(side: Int, count: Int) = Axis(0.0, side.toDouble() / count, count, 0, count)

private fun cropped(image: RgbImage, widthPx: Int, heightPx: Int): Pair<Axis, Axis> {
    val scale = min(image.widthPx.toDouble() / widthPx, image.heightPx.toDouble() / heightPx)
    return Pair(
        Axis((image.widthPx - scale * widthPx) / 2, scale, widthPx, 0, widthPx),
        Axis((image.heightPx - scale * heightPx) / 2, scale, heightPx, 0, heightPx),
    )
}

private fun resized(image: RgbImage, widthPx: Int, heightPx: Int, resizePx: Int): Pair<Axis, Axis> {
    val shorter = min(image.widthPx, image.heightPx)
    fun along(side: Int, count: Int): Axis {
        val resized = if (side == shorter) resizePx else (resizePx.toDouble() * side / shorter).toInt()
        return Axis(0.0, side.toDouble() / resized, resized, round((resized - count) / 2.0).toInt(), count) // halves to even
    }
    return Pair(along(image.widthPx, widthPx), along(image.heightPx, heightPx))
}

/** Which old pixels a new one is made of, and how much of each, in whole numbers of 2^-22 as Pillow counts. */
private class Tap(val first: Int, val shares: LongArray)

private const val PRECISION_BITS = 22
private const val ONE = 1L shl PRECISION_BITS

private fun counted(share: Double) = (share * ONE + if (share < 0) -0.5 else 0.5).toLong()

private fun taps(axis: Axis, limit: Int, interpolation: Interpolation): List<Tap> {
    if (interpolation.support == 0) return nearest(axis, limit)
    val stretch = max(axis.scale, 1.0)
    return List(axis.count) { index ->
        val centre = axis.start + (axis.first + index + 0.5) * axis.scale
        val first = max(0, floor(centre - interpolation.support * stretch + 0.5).toInt())
        val last = min(limit, floor(centre + interpolation.support * stretch + 0.5).toInt())
        val shares = DoubleArray(last - first) { interpolation.share((first + it - centre + 0.5) / stretch) }
        val sum = shares.sum()
        Tap(first, LongArray(shares.size) { counted(shares[it] / sum) })
    }
}

/** The old pixel at each new one's centre; centres are added up, as Pillow does, rounding errors and all. */
private fun nearest(axis: Axis, limit: Int): List<Tap> {
    var centre = axis.start + axis.scale * 0.5
    repeat(axis.first) { centre += axis.scale }
    return List(axis.count) {
        Tap(floor(centre).toInt().coerceIn(0, limit - 1), longArrayOf(ONE)).also { centre += axis.scale }
    }
}

private fun resampledAcross(image: RgbImage, columns: List<Tap>): RgbImage {
    val made = ByteArray(COLOURS * columns.size * image.heightPx)
    for (y in 0 until image.heightPx) {
        columns.forEachIndexed { x, tap ->
            val from = COLOURS * (y * image.widthPx + tap.first)
            mix(image.bytes, from, COLOURS, tap.shares, made, COLOURS * (y * columns.size + x))
        }
    }
    return RgbImage(columns.size, image.heightPx, made)
}

private fun resampledDown(image: RgbImage, rows: List<Tap>): RgbImage {
    val made = ByteArray(COLOURS * image.widthPx * rows.size)
    rows.forEachIndexed { y, tap ->
        for (x in 0 until image.widthPx) {
            val from = COLOURS * (tap.first * image.widthPx + x)
            mix(image.bytes, from, COLOURS * image.widthPx, tap.shares, made, COLOURS * (y * image.widthPx + x))
        }
    }
    return RgbImage(image.widthPx, rows.size, made)
}

private fun mix(source: ByteArray, from: Int, step: Int, shares: LongArray, made: ByteArray, to: Int) {
    for (channel in 0 until COLOURS) {
        var sum = ONE / 2
        var position = from + channel
        for (share in shares) {
            sum += share * (source[position].toInt() and 0xff)
            position += step
        }
        made[to + channel] = (sum shr PRECISION_BITS).toInt().coerceIn(0, 255).toByte()
    }
}
