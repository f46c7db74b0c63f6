package edgeprune.app

import edgeprune.core.Description
import edgeprune.core.Found
import edgeprune.core.Layout
import edgeprune.core.Likely
import edgeprune.core.RgbImage
import edgeprune.core.Spread
import edgeprune.core.fit
import edgeprune.core.likeliest
import edgeprune.core.tensor
import edgeprune.core.top
import java.io.File

private const val WARMUP = 5
private const val RUNS = 50
private const val SHOWN = 5

/**
 * What one file did with one image.
 *
 * classes: of a classifier, the likeliest first. map: of a segmenter, the likeliest class of each pixel.
 * boxes: of a detector, the likeliest first, in pixels of `seen`, and the names of their classes; null of another file.
 * peakMemoryBytes: of the whole app since it began; null where the system does not say.
 */
class Trial(
    val bytes: Long,
    val loadMs: Double,
    val spread: Spread,
    val peakMemoryBytes: Long?,
    val seen: RgbImage,
    val classes: List<Likely>,
    val map: Pair<IntArray, Layout>?,
    val boxes: List<Pair<Found, String>>?,
    val classCount: Int,
) {
    companion object {
        /** Throws an Exception with one readable sentence where the file is not what this app can show. */
        fun of(file: File, image: RgbImage, device: Device): Trial {
            val content = file.readBytes()
            require(Description.isTflite(content)) { "${file.name} is not a .tflite file." }
            val told = Description.of(content)
            val input = requireNotNull(told.input) { "${file.name} does not take one colour image." }
            val seen = fit(image, input.widthPx, input.heightPx, told.resizePx, told.interpolation, told.wholeImage)
            val pixels = tensor(seen, input.channelsLast, told.range, told.normalization)
            val start = System.nanoTime()
            LoadedModel.load(file, device).use { model ->
                val loadMs = millisecondsSince(start)
                repeat(WARMUP) { model.run(pixels) }
                var values = FloatArray(0)
                val times = List(RUNS) {
                    val begun = System.nanoTime()
                    values = model.run(pixels)
                    millisecondsSince(begun)
                }
                val boxes = boxes(told, values)
                val layout = if (boxes == null) told.map() else null
                return Trial(
                    file.length(),
                    loadMs,
                    Spread.of(times),
                    peakMemoryBytes(),
                    seen,
                    if (layout == null && boxes == null) top(values, told.labels, SHOWN) else emptyList(),
                    layout?.let { Pair(likeliest(values, it), it) },
                    boxes,
                    told.labels?.size ?: 1,
                )
            }
        }

        private fun boxes(told: Description, values: FloatArray): List<Pair<Found, String>>? {
            val (rows, labels) = Pair(told.rows, told.labels)
            if (!told.findsBoxes || rows == null || labels == null) return null
            require(values.all { it.isFinite() }) { "the model gives values that are not numbers" }
            return rows.find(values, labels.size).map { Pair(it, labels[it.label]) }
        }

        private fun millisecondsSince(nanoseconds: Long) = (System.nanoTime() - nanoseconds) / 1e6

        private fun peakMemoryBytes(): Long? = File("/proc/self/status").readLines()
            .firstOrNull { it.startsWith("VmHWM:") }
            ?.filter { it.isDigit() }?.toLongOrNull()?.let { it * 1024 }
    }
}
