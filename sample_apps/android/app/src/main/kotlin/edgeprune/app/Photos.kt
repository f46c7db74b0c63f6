package edgeprune.app

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import edgeprune.core.COLOURS
import edgeprune.core.Found
import edgeprune.core.Layout
import edgeprune.core.RgbImage
import edgeprune.core.exifOrientation
import edgeprune.core.upright

/** An image file as RGB pixels, turned upright; null where Android cannot read it. */
fun decode(file: ByteArray): RgbImage? {
    val options = BitmapFactory.Options().apply {
        inPreferredConfig = Bitmap.Config.ARGB_8888
        inPremultiplied = false
    }
    val bitmap = BitmapFactory.decodeByteArray(file, 0, file.size, options) ?: return null
    val argb = IntArray(bitmap.width * bitmap.height)
    bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
    val bytes = ByteArray(COLOURS * argb.size)
    argb.forEachIndexed { pixel, colour ->
        bytes[COLOURS * pixel] = (colour shr 16).toByte()
        bytes[COLOURS * pixel + 1] = (colour shr 8).toByte()
        bytes[COLOURS * pixel + 2] = colour.toByte()
    }
    return upright(RgbImage(bitmap.width, bitmap.height, bytes), exifOrientation(file))
}

/** What a model sees, to be shown. */
fun shown(image: RgbImage): Bitmap {
    val argb = IntArray(image.widthPx * image.heightPx) { pixel ->
        (0 until COLOURS).fold(0xff) { colour, channel ->
            (colour shl 8) or (image.bytes[COLOURS * pixel + channel].toInt() and 0xff)
        }
    }
    return Bitmap.createBitmap(argb, image.widthPx, image.heightPx, Bitmap.Config.ARGB_8888)
}

/** What a model sees with the boxes that it finds, each in its class's colour with its name and how likely it is. */
fun shown(image: RgbImage, boxes: List<Pair<Found, String>>, classes: Int): Bitmap {
    val enlarged = Bitmap.createScaledBitmap(shown(image), ENLARGED * image.widthPx, ENLARGED * image.heightPx, true)
    val bitmap = enlarged.copy(Bitmap.Config.ARGB_8888, true)
    val canvas = Canvas(bitmap)
    val line = Paint().apply {
        style = Paint.Style.STROKE
        strokeWidth = LINE_PX
    }
    val words = Paint().apply {
        isAntiAlias = true
        textSize = TEXT_PX
    }
    for ((found, name) in boxes.asReversed()) { // The likeliest is drawn last, above the others.
        val colour = Color.HSVToColor(floatArrayOf(360f * found.label / classes, 0.9f, 0.9f))
        line.color = colour
        words.color = colour
        val box = found.box
        canvas.drawRect(ENLARGED * box.x1, ENLARGED * box.y1, ENLARGED * box.x2, ENLARGED * box.y2, line)
        val below = (ENLARGED * box.y1 - LINE_PX).coerceAtLeast(TEXT_PX)
        canvas.drawText("$name ${"%.0f".format(100 * found.score)} %", ENLARGED * box.x1, below, words)
    }
    return bitmap
}

private const val ENLARGED = 3
private const val LINE_PX = 3f
private const val TEXT_PX = 24f

/** A map of classes, each a colour. */
fun shown(classes: IntArray, layout: Layout): Bitmap {
    val argb = IntArray(classes.size) { pixel ->
        val hue = 360f * classes[pixel] / layout.channels
        Color.HSVToColor(floatArrayOf(hue, if (classes[pixel] == 0) 0f else 0.8f, 0.8f))
    }
    return Bitmap.createBitmap(argb, layout.widthPx, layout.heightPx, Bitmap.Config.ARGB_8888)
}
