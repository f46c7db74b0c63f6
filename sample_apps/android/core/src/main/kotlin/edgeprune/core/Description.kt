package edgeprune.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What a model does to pixels, or the app for it: (pixel / 255 - mean) / std, RGB. */
class Normalization(val mean: List<Double>, val std: List<Double>)

/** How the shapes of a file lay out an image or a map. */
data class Layout(val heightPx: Int, val widthPx: Int, val channels: Int, val channelsLast: Boolean)

/**
 * What a `.tflite` file says of itself.
 *
 * range: of the pixels it takes; it normalises them itself. null: `normalization` is the app's to do; null too:
 *   the file does not say.
 * labels: class names in output order.
 * resizePx: shorter side of the whole image before the middle is cropped; null: the largest middle part is cropped
 *   first, then resized.
 * wholeImage: nothing is cropped, the image is squeezed.
 * rows: of a detector, how its rows become boxes.
 * inputShape, outputShape: as stored, the batch first; null where the file has not one of each.
 */
class Description(
    val range: Pair<Double, Double>?,
    val normalization: Normalization?,
    val labels: List<String>?,
    val resizePx: Int?,
    val interpolation: Interpolation,
    val inputShape: List<Int>?,
    val outputShape: List<Int>?,
    val wholeImage: Boolean = false,
    val rows: Rows? = null,
) {
    /** Whether the output has the rows that `rows` speaks of, for as many classes as there are labels. */
    val findsBoxes: Boolean
        get() = rows != null && labels != null && outputShape == listOf(1, rows.count, rows.width(labels.size))

    /** Where the one colour image of the input has its sides; null where it takes something else. */
    val input: Layout?
        get() = inputShape?.let { image(it) }

    /** Where the map of the output has its sides; null where it gives plain values. */
    fun map(): Layout? {
        val shape = outputShape ?: return null
        val classes = labels?.size
        if (shape.size != 4 || shape[0] != 1) return null
        val channelsLast = if (classes != null && shape[3] != shape[1]) shape[3] == classes else true
        return if (channelsLast) Layout(shape[1], shape[2], shape[3], true) else Layout(shape[2], shape[3], shape[1], false)
    }

    companion object {
        /** Reads a file; an entry that is missing, damaged or of another kind counts as not there. */
        fun of(file: ByteArray): Description {
            val content = reading { Flatbuffer(file).metadata()?.let { Json.parse(it) } } as? Map<*, *>
            val shapes = reading { Flatbuffer(file).shapes() }
            val input = content?.get("input") as? Map<*, *>
            val range = numbers(input?.get("range"), 2)
            val mean = numbers(input?.get("mean"), COLOURS)
            val std = numbers(input?.get("std"), COLOURS)
            val leavesIt = input != null && input["range"] == null
            val told = (content?.get("metadata") as? Map<*, *>)?.get("preprocessing") as? String
            val preparation = reading { told?.let { Json.parse(it) } } as? Map<*, *>
            val resize = preparation?.get("resize_px") as? Double
            return Description(
                range?.let { Pair(it[0], it[1]) },
                if (leavesIt && mean != null && std != null && std.all { it > 0 }) Normalization(mean, std) else null,
                (content?.get("labels") as? List<*>)?.takeIf { all -> all.all { it is String } }?.map { it as String },
                resize?.toInt()?.takeIf { it > 0 && it.toDouble() == resize },
                Interpolation.named(preparation?.get("interpolation")),
                shapes?.first,
                shapes?.second,
                preparation?.get("whole_image") == true,
                Rows.of((content?.get("metadata") as? Map<*, *>)?.get("boxes") as? String),
            )
        }

        /** Whether a file begins as a `.tflite` does. */
        fun isTflite(file: ByteArray) = file.size >= 8 && String(file, 4, 4, Charsets.ISO_8859_1) == "TFL3"

        private fun image(shape: List<Int>): Layout? = when {
            shape.size != 4 || shape[0] != 1 -> null
            shape[3] == COLOURS -> Layout(shape[1], shape[2], COLOURS, true)
            shape[1] == COLOURS -> Layout(shape[2], shape[3], COLOURS, false)
            else -> null
        }

        private fun numbers(value: Any?, count: Int): List<Double>? =
            (value as? List<*>)?.takeIf { it.size == count && it.all { number -> number is Double } }?.map { it as Double }

        private fun <T> reading(read: () -> T?): T? = try {
            read()
        } catch (_: IndexOutOfBoundsException) {
            null
        } catch (_: IllegalArgumentException) {
            null
        }
    }
}

const val COLOURS = 3

/** The few tables of LiteRT's schema that are needed. A table is the position it starts at. */
private class Flatbuffer(private val bytes: ByteArray) {
    private val view = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)

    /** The text of the metadata entry "edgeprune"; null where there is none. */
    fun metadata(): String? {
        val model = target(0)
        val buffers = tables(model, BUFFERS)
        for (entry in tables(model, METADATA)) {
            if (String(vector(entry, NAME)) != "edgeprune") continue
            val number = field(entry, BUFFER)?.let { view.getInt(it) } ?: 0
            return buffers.getOrNull(number)?.let { String(vector(it, DATA)) }
        }
        return null
    }

    /** Shapes of the only input and the only output; null where there are more. */
    fun shapes(): Pair<List<Int>, List<Int>>? {
        val graph = tables(target(0), SUBGRAPHS).firstOrNull() ?: return null
        val tensors = tables(graph, TENSORS)
        val (inputs, outputs) = listOf(INPUTS, OUTPUTS).map { numbers(graph, it) }
        if (inputs.size != 1 || outputs.size != 1) return null
        return Pair(numbers(tensors[inputs[0]], SHAPE), numbers(tensors[outputs[0]], SHAPE))
    }

    private fun tables(table: Int, field: Int): List<Int> = positions(table, field).map { target(it) }

    private fun numbers(table: Int, field: Int): List<Int> = positions(table, field).map { view.getInt(it) }

    private fun positions(table: Int, field: Int): List<Int> {
        val start = field(table, field)?.let { target(it) } ?: return emptyList()
        val count = view.getInt(start)
        if (count < 0 || count > (bytes.size - start) / 4) throw IndexOutOfBoundsException("a vector beyond the end")
        return List(count) { start + 4 + 4 * it }
    }

    private fun vector(table: Int, field: Int): ByteArray {
        val start = field(table, field)?.let { target(it) } ?: return ByteArray(0)
        val count = view.getInt(start)
        if (count < 0 || count > bytes.size - start - 4) throw IndexOutOfBoundsException("a vector beyond the end")
        return bytes.copyOfRange(start + 4, start + 4 + count)
    }

    private fun field(table: Int, field: Int): Int? {
        val fields = table - view.getInt(table)
        val entry = 4 + 2 * field
        if (entry >= unsigned(fields)) return null
        return unsigned(fields + entry).takeIf { it != 0 }?.let { table + it }
    }

    private fun unsigned(position: Int) = view.getShort(position).toInt() and 0xffff

    private fun target(position: Int): Int = position + view.getInt(position)

    private companion object {
        const val SUBGRAPHS = 2
        const val BUFFERS = 4
        const val METADATA = 6
        const val NAME = 0
        const val BUFFER = 1
        const val DATA = 0
        const val TENSORS = 0
        const val INPUTS = 1
        const val OUTPUTS = 2
        const val SHAPE = 0
    }
}
