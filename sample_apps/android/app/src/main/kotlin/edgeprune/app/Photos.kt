package edgeprune.app

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import edgeprune.core.COLOURS
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

/** A map of classes, each a colour. */
fun shown(classes: IntArray, layout: Layout): Bitmap {
    val argb = IntArray(classes.size) { pixel ->
        val hue = 360f * classes[pixel] / layout.channels
        android.graphics.Color.HSVToColor(floatArrayOf(hue, if (classes[pixel] == 0) 0f else 0.8f, 0.8f))
    }
    return Bitmap.createBitmap(argb, layout.widthPx, layout.heightPx, Bitmap.Config.ARGB_8888)
}
