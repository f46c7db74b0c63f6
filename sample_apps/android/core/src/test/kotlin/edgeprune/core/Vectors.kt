package edgeprune.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import kotlin.math.abs
import kotlin.system.exitProcess

/**
 * Holds this code against what Python computed: `vectors.json` of sample_apps/vectors/write_vectors.py.
 * Run by Gradle as a JUnit test, or by itself: java -cp ... edgeprune.core.VectorsKt vectors.json
 */
fun main(arguments: Array<String>) {
    var failed = 0
    val checks = checks(File(arguments[0]))
    for ((name, check) in checks) {
        try {
            check()
        } catch (error: Throwable) {
            failed++
            println("FAILED $name: $error")
        }
    }
    println("${checks.size - failed} passed, $failed failed")
    exitProcess(if (failed == 0) 0 else 1)
}

/** Every case of a file of vectors, by name. */
fun checks(file: File): Map<String, () -> Unit> {
    val vectors = Json.parse(file.readText()) as Map<*, *>
    val images = vectors.cases("images").associate { it["name"] to RgbImage(it.int("width_px"), it.int("height_px"), it.bytes("rgb")) }
    val found = LinkedHashMap<String, () -> Unit>()
    fun each(kind: String, check: (Map<*, *>) -> Unit) =
        vectors.cases(kind).forEachIndexed { number, case -> found["$kind $number"] = { check(case) } }
    each("files", ::checkFile)
    each("preparations") { case ->
        val size = case.int("size_px")
        val way = Interpolation.named(case["interpolation"])
        same(fit(images[case["image"]]!!, size, size, case.intOrNull("resize_px"), way, case["whole_image"] == true).bytes.toList(), case.bytes("rgb").toList())
    }
    each("answers") { case -> checkAnswer(case, images[case["image"]]!!) }
    each("orientations") { case ->
        val turned = upright(RgbImage(case.int("width_px"), case.int("height_px"), case.bytes("rgb")), exifOrientation(case.bytes("jpeg")))
        same(listOf(turned.widthPx, turned.heightPx), listOf(case.int("upright_width_px"), case.int("upright_height_px")))
        same(turned.bytes.toList(), case.bytes("upright").toList())
    }
    each("maps") { case ->
        val shape = case.numbers("shape").map { it.toInt() }
        val last = case["channels_last"] as Boolean
        val layout = if (last) Layout(shape[1], shape[2], shape[3], true) else Layout(shape[2], shape[3], shape[1], false)
        same(likeliest(case.floats("values"), layout).toList(), case.bytes("classes").map { it.toInt() })
    }
    each("suppressions") { case ->
        val boxes = (case["boxes"] as List<*>).map { box -> (box as List<*>).map { (it as Double).toFloat() } }.map { Box(it[0], it[1], it[2], it[3]) }
        val scores = case.numbers("scores").map { it.toFloat() }.toFloatArray()
        val classes = case.numbers("classes").map { it.toInt() }.toIntArray()
        same(suppress(boxes, scores, classes, case.number("iou_threshold").toFloat()), case.numbers("kept").map { it.toInt() })
    }
    each("detections") { case ->
        val rows = checkNotNull(Rows.of(case["boxes"] as String)) { "says nothing of its rows" }
        val boxes = rows.find(case.floats("rows"), case.int("classes"))
        val wanted = (case["found"] as List<*>).map { it as Map<*, *> }
        same(boxes.map { it.label }, wanted.map { it.int("label") })
        close(boxes.map { it.score.toDouble() }, wanted.map { it.number("score") }, 1e-5)
        close(boxes.flatMap { listOf(it.box.x1, it.box.y1, it.box.x2, it.box.y2) }.map { it.toDouble() }, wanted.flatMap { it.numbers("corners") }, 1e-3)
    }
    each("timings") { case ->
        val spread = Spread.of(case.numbers("milliseconds"))
        close(listOf(spread.low, spread.median, spread.high), listOf("low", "median", "high").map { case.number(it) }, 1e-9)
    }
    found["damaged files"] = { checkDamaged(File(vectors.cases("files").first()["path"] as String).readBytes()) }
    found["texts that are no JSON"] = ::checkJson
    found["rows that are none"] = {
        for (text in listOf(null, "", "[]", "{}", "{\"size_px\": 320, \"levels\": [{\"cells\": 0}]}")) same(Rows.of(text), null)
    }
    return found
}

private fun checkFile(case: Map<*, *>) {
    val file = File(case["path"] as String).readBytes()
    val told = Description.of(file)
    check(Description.isTflite(file)) { "begins as a .tflite" }
    same(told.range?.toList(), case["range"])
    same(told.normalization?.mean, case["mean"])
    same(told.normalization?.std, case["std"])
    same(told.labels, case["labels"])
    same(told.resizePx?.toDouble(), case["resize_px"])
    same(told.interpolation.name.lowercase(), case["interpolation"])
    same(told.inputShape?.map { it.toDouble() }, case["input_shape"])
    same(told.outputShape?.map { it.toDouble() }, case["output_shape"])
}

private fun checkAnswer(case: Map<*, *>, image: RgbImage) {
    val told = Description.of(File(case["file"] as String).readBytes())
    val input = checkNotNull(told.input) { "takes no image" }
    same(input.channelsLast, case["channels_last"])
    val fitted = fit(image, input.widthPx, input.heightPx, told.resizePx, told.interpolation, told.wholeImage)
    val expected = case.floats("tensor")
    close(tensor(fitted, input.channelsLast, told.range, told.normalization).map { it.toDouble() }, expected.map { it.toDouble() }, 1e-5)
    val top = top(case.numbers("values").map { it.toFloat() }.toFloatArray(), told.labels, 3)
    val wanted = (case["top"] as List<*>).map { it as Map<*, *> }
    same(top.map { it.name }, wanted.map { it["name"] })
    close(top.map { it.probability }, wanted.map { it.number("probability") }, 1e-5)
}

/** Whatever is cut off or changed, reading a file ends, and says less at most. */
private fun checkDamaged(file: ByteArray) {
    for (length in 0..file.size step 97) Description.of(file.copyOf(length))
    var seed = 1L
    fun random(below: Int): Int {
        seed = seed * 48271 % 2147483647
        return (seed % below).toInt()
    }
    repeat(2000) { trial ->
        val damaged = file.copyOf()
        repeat(20) { damaged[random(if (trial % 2 == 0) file.size else 400)] = random(256).toByte() }
        val told = Description.of(damaged)
        check(told.range == null || told.range.toList().all { it.isFinite() })
    }
}

private fun checkJson() {
    for (text in listOf("", "{", "[1,]", "\"a", "{\"a\" 1}", "nul", "1 2", "\"\\x\"", "[".repeat(1000), "\"\\u00", "-", "01x")) {
        val refused = try {
            Json.parse(text)
            false
        } catch (_: IllegalArgumentException) {
            true
        }
        check(refused) { "$text was taken" }
    }
    same(Json.parse(" {\"a\\n\\u00e4\": [1.5e2, true, null, \"\"]} "), mapOf("a\nä" to listOf(150.0, true, null, "")))
}

private fun same(found: Any?, expected: Any?) = check(found == expected) { "$found, expected $expected" }

private fun close(found: List<Double>, expected: List<Double>, within: Double) {
    same(found.size, expected.size)
    val worst = found.indices.maxOfOrNull { abs(found[it] - expected[it]) } ?: 0.0
    check(worst <= within) { "off by $worst, more than $within" }
}

private fun Map<*, *>.cases(name: String) = (this[name] as List<*>).map { it as Map<*, *> }

private fun Map<*, *>.number(name: String) = this[name] as Double

private fun Map<*, *>.numbers(name: String) = (this[name] as List<*>).map { it as Double }

private fun Map<*, *>.int(name: String) = number(name).toInt()

private fun Map<*, *>.intOrNull(name: String) = (this[name] as Double?)?.toInt()

private fun Map<*, *>.bytes(name: String): ByteArray = Base64.getDecoder().decode(this[name] as String)

private fun Map<*, *>.floats(name: String): FloatArray {
    val buffer = ByteBuffer.wrap(bytes(name)).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()) { buffer.get(it) }
}
