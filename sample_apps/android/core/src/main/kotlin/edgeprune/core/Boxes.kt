package edgeprune.core

import kotlin.math.max
import kotlin.math.min

/** A box by its edges, in any one unit; y down, x to the right. */
class Box(val y1: Float, val x1: Float, val y2: Float, val x2: Float) {
    val area get() = (y2 - y1) * (x2 - x1)
}

/** Intersection over union, 0 to 1; 0 of boxes without an area. */
fun intersectionOverUnion(a: Box, b: Box): Float {
    val height = max(0f, min(a.y2, b.y2) - max(a.y1, b.y1))
    val width = max(0f, min(a.x2, b.x2) - max(a.x1, b.x1))
    val union = a.area + b.area - height * width
    return if (union > 0) height * width / union else 0f
}

/**
 * Non-maximum suppression: places of the boxes that are kept, the best score first. A box goes where one of the same
 * class with a better score overlaps it by more than `iouThreshold`.
 */
fun suppress(boxes: List<Box>, scores: FloatArray, classes: IntArray, iouThreshold: Float): List<Int> {
    require(boxes.size == scores.size && boxes.size == classes.size) {
        "${boxes.size} boxes, ${scores.size} scores and ${classes.size} classes"
    }
    val kept = ArrayList<Int>()
    for (place in boxes.indices.sortedByDescending { scores[it] }) {
        val covered = kept.any {
            classes[it] == classes[place] && intersectionOverUnion(boxes[it], boxes[place]) > iouThreshold
        }
        if (!covered) kept.add(place)
    }
    return kept
}
