/// A box by its edges, in any one unit; y down, x to the right.
public struct Box: Equatable {
    public let y1: Float
    public let x1: Float
    public let y2: Float
    public let x2: Float

    public init(y1: Float, x1: Float, y2: Float, x2: Float) {
        (self.y1, self.x1, self.y2, self.x2) = (y1, x1, y2, x2)
    }

    public var area: Float { (y2 - y1) * (x2 - x1) }
}

/// Intersection over union, 0 to 1; 0 of boxes without an area.
public func intersectionOverUnion(_ a: Box, _ b: Box) -> Float {
    let height = max(0, min(a.y2, b.y2) - max(a.y1, b.y1))
    let width = max(0, min(a.x2, b.x2) - max(a.x1, b.x1))
    let union = a.area + b.area - height * width
    return union > 0 ? height * width / union : 0
}

/// Non-maximum suppression: places of the boxes that are kept, the best score first. A box goes where one of the same
/// class with a better score overlaps it by more than `iouThreshold`.
public func suppress(_ boxes: [Box], scores: [Float], classes: [Int], iouThreshold: Float) -> [Int] {
    precondition(boxes.count == scores.count && boxes.count == classes.count, "a score and a class for each box")
    var kept: [Int] = []
    let order = boxes.indices.sorted { (scores[$1], $0) < (scores[$0], $1) }
    for place in order {
        let covered = kept.contains {
            classes[$0] == classes[place] && intersectionOverUnion(boxes[$0], boxes[place]) > iouThreshold
        }
        if !covered { kept.append(place) }
    }
    return kept
}
