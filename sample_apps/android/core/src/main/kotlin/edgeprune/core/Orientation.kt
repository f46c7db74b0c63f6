package edgeprune.core

/** The EXIF orientation of a JPEG, 1 to 8; 1 where it has none, or is no JPEG. */
fun exifOrientation(file: ByteArray): Int = try {
    orientation(file) ?: UPRIGHT
} catch (_: IndexOutOfBoundsException) {
    UPRIGHT
}

/** An image as its EXIF orientation wants it shown. */
fun upright(image: RgbImage, orientation: Int): RgbImage {
    if (orientation !in 2..8) return image
    val turned = orientation >= 5 // rows become columns
    val (width, height) = if (turned) Pair(image.heightPx, image.widthPx) else Pair(image.widthPx, image.heightPx)
    val made = ByteArray(image.bytes.size)
    for (y in 0 until height) {
        for (x in 0 until width) {
            val (column, row) = if (turned) Pair(y, x) else Pair(x, y)
            val mirrored = orientation in intArrayOf(2, 3, 7, 8)
            val flipped = orientation in intArrayOf(3, 4, 6, 7)
            val fromX = if (mirrored) image.widthPx - 1 - column else column
            val fromY = if (flipped) image.heightPx - 1 - row else row
            image.bytes.copyInto(made, COLOURS * (y * width + x), COLOURS * (fromY * image.widthPx + fromX), COLOURS * (fromY * image.widthPx + fromX) + COLOURS)
        }
    }
    return RgbImage(width, height, made)
}

private fun orientation(file: ByteArray): Int? {
    if (big(file, 0) != 0xffd8) return null
    var at = 2
    while (big(file, at) != 0xffda) { // where the picture itself begins
        if (big(file, at) == 0xffe1 && String(file, at + 4, 4, Charsets.ISO_8859_1) == "Exif") return inTiff(file, at + 10)
        at += 2 + big(file, at + 2)
    }
    return null
}

private fun inTiff(file: ByteArray, tiff: Int): Int? {
    val little = file[tiff] == 'I'.code.toByte()
    fun short(at: Int) = if (little) (byte(file, at + 1) shl 8) or byte(file, at) else big(file, at)
    fun int(at: Int) = if (little) (short(at + 2) shl 16) or short(at) else (short(at) shl 16) or short(at + 2)
    val directory = tiff + int(tiff + 4)
    for (entry in 0 until short(directory)) {
        val at = directory + 2 + 12 * entry
        if (short(at) == ORIENTATION) return short(at + 8).takeIf { it in 1..8 }
    }
    return null
}

private fun big(file: ByteArray, at: Int) = (byte(file, at) shl 8) or byte(file, at + 1)

private fun byte(file: ByteArray, at: Int) = file[at].toInt() and 0xff

private const val ORIENTATION = 0x0112
private const val UPRIGHT = 1
